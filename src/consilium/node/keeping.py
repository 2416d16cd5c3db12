"""Which content is kept, and which is to be deleted because its series is done with."""

from consilium.node.database import NodeDatabase

NO_IMAGE = "no image of it came; its structure sets are deleted."


class Keeping:
    """What of the received and made objects has to be on the disk."""

    def __init__(self, database: NodeDatabase) -> None:
        self._database = database

    def purge(self, before: float) -> list[str]:
        """Forget the content of series that are done with since ``before``: the digests to delete.

        A series of which only structure sets came, the last of them before then, is done with too.
        """
        with self._database.change() as db:
            numbers = [
                row["number"]
                for row in db.execute(
                    "SELECT number FROM series WHERE purged = 0 AND state IN ('contoured', 'refused') "
                    "AND changed_at < ? AND NOT EXISTS (SELECT 1 FROM sendings "
                    "  WHERE sendings.series = series.number AND "
                    "    (sendings.state = 'waiting' OR sendings.next_at >= ?))",
                    (before, before),
                )
            ]
            strays = [
                row["number"]
                for row in db.execute(
                    "SELECT number FROM series WHERE purged = 0 AND state = 'receiving' AND revision = 0 "
                    "AND NOT EXISTS (SELECT 1 FROM objects WHERE series = number AND received_at >= ?)",
                    (before,),
                )
            ]
            db.executemany("UPDATE series SET message = ? WHERE number = ?", [(NO_IMAGE, n) for n in strays])
            numbers += strays
            db.executemany("UPDATE series SET purged = 1 WHERE number = ?", [(n,) for n in numbers])
        digests: list[str] = []
        for number in numbers:
            for table in ("objects", "results"):
                digests += [
                    r["digest"]
                    for r in self._database.rows(f"SELECT digest FROM {table} WHERE series = ?", number)
                ]
        kept = self.kept_digests()
        return [digest for digest in digests if digest not in kept]

    def kept_digests(self) -> set[str]:
        """Of every object whose content is to be kept."""
        rows = self._database.rows(
            "SELECT digest FROM objects JOIN series ON series = number WHERE purged = 0 "
            "UNION SELECT digest FROM results JOIN series ON series = number WHERE purged = 0"
        )
        return {str(row["digest"]) for row in rows}
