"""What the node knows of series: in one SQLite file, every step a durable transaction.

A series goes ``receiving`` → ``contouring`` → ``contoured`` (or ``refused``). A new object of a series that
is past ``receiving`` brings it back there: its contours were of an incomplete series and are made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.node.database import NodeDatabase
from consilium.node.keeping import Keeping
from consilium.node.outbox import Outbox
from consilium.node.refusals import Refusals


@dataclass(frozen=True, kw_only=True)
class Job:
    """A complete series to contour.

    Args:
        number: How messages call it.
        revision: Counts the objects that came; contours of an older revision are not taken.
        images, structure_sets: Digests of its objects.
    """

    number: int
    revision: int
    images: tuple[str, ...]
    structure_sets: tuple[str, ...]


class Queue:
    """The series. One process at a time feeds it; others may look, and ask for another try.

    Args:
        path: Of the SQLite file; made if absent.
    """

    def __init__(self, path: Path) -> None:
        self._database = NodeDatabase(path)
        self.outbox = Outbox(self._database)
        self.refusals = Refusals(self._database)
        self.keeping = Keeping(self._database)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    def resume(self, now: float) -> None:
        """After a start: what was under way when the process ended waits again."""
        with self._database.change() as db:
            db.execute("UPDATE feeds SET broken = 1")
            db.execute("UPDATE series SET state = 'receiving' WHERE state = 'contouring'")
            db.execute("UPDATE series SET quiet_since = ? WHERE state = 'receiving'", (now,))
            db.execute("UPDATE sendings SET next_at = 0 WHERE state = 'waiting'")

    def digest_of(self, sop_instance_uid: str) -> str | None:
        """Digest of the object of this UID, received or made here; None if it is not known."""
        rows = self._database.rows(
            "SELECT digest FROM objects WHERE sop_instance_uid = ? "
            "UNION SELECT digest FROM results WHERE sop_instance_uid = ?",
            sop_instance_uid,
            sop_instance_uid,
        )
        return str(rows[0]["digest"]) if rows else None

    def is_ours(self, sop_instance_uid: str) -> bool:
        """Whether the object was made here: a PACS that forwards everything sends it back."""
        return bool(self._database.rows("SELECT 1 FROM results WHERE sop_instance_uid = ?", sop_instance_uid))

    def add(
        self,
        sop_instance_uid: str,
        series_uid: str,
        *,
        kind: str,
        digest: str,
        feed: tuple[str, str],
        now: float,
    ) -> int:
        """Note an object that is on the disk.

        Args:
            sop_instance_uid: Of the object; nothing happens if it is there already.
            series_uid: Of the image series that it is part of, or was drawn on.
            kind: ``"image"`` or ``"structures"``.
            digest: Of its content.
            feed: Association and sender.
            now: Seconds since the epoch.

        Returns:
            The number of the series.
        """
        with self._database.change() as db:
            db.execute(
                "INSERT OR IGNORE INTO series VALUES (NULL, ?, 'receiving', 0, 0, ?, 0, '', ?, 0)",
                (series_uid, now, now),
            )
            row = db.execute("SELECT number FROM series WHERE series_uid = ?", (series_uid,)).fetchone()
            number = int(row["number"])
            new = not db.execute(
                "SELECT 1 FROM objects WHERE sop_instance_uid = ?", (sop_instance_uid,)
            ).fetchone()
            if new:
                # Of a series whose content was deleted, everything must come again.
                db.execute(
                    "DELETE FROM objects WHERE series = (SELECT number FROM series "
                    "WHERE number = ? AND purged = 1)",
                    (number,),
                )
                db.execute("UPDATE series SET purged = 0 WHERE number = ?", (number,))
                db.execute(
                    "INSERT INTO objects VALUES (?, ?, ?, ?, ?)",
                    (sop_instance_uid, number, kind, digest, now),
                )
            if new and kind == "image":
                db.execute(
                    "UPDATE series SET revision = revision + 1, state = 'receiving', attempts = 0, "
                    "complete = 0, message = '', changed_at = ? WHERE number = ?",
                    (now, number),
                )
            db.execute("UPDATE series SET quiet_since = ? WHERE number = ?", (now, number))
            db.execute("INSERT OR IGNORE INTO feeds VALUES (?, ?, ?, 0)", (number, *feed))
        return number

    def end_association(self, association: str, *, released: bool) -> None:
        """An association ended: by agreement, or cut off.

        A sender that comes back and ends well makes up for its broken associations of the same series.
        """
        with self._database.change() as db:
            if released:
                db.execute(
                    "DELETE FROM feeds WHERE broken = 1 AND EXISTS (SELECT 1 FROM feeds AS mine "
                    "WHERE mine.association = ? AND mine.series = feeds.series "
                    "AND mine.sender = feeds.sender)",
                    (association,),
                )
                db.execute("DELETE FROM feeds WHERE association = ?", (association,))
            else:
                db.execute("UPDATE feeds SET broken = 1 WHERE association = ?", (association,))

    def count_images(self, series_uid: str) -> int:
        """How many images of a series are here or were."""
        rows = self._database.rows(
            "SELECT count(*) AS n FROM objects JOIN series ON series = number "
            "WHERE series_uid = ? AND kind = 'image'",
            series_uid,
        )
        return int(rows[0]["n"])

    def mark_complete(self, series_uid: str) -> None:
        """The source said how many images the series has, and all are here."""
        with self._database.change() as db:
            db.execute("UPDATE series SET complete = 1 WHERE series_uid = ?", (series_uid,))

    def claim(self, *, now: float, quiet_s: float, interrupted_s: float) -> Job | None:
        """Take the oldest complete series; None if there is none."""
        with self._database.change() as db:
            row = db.execute(
                "SELECT number, revision FROM series WHERE state = 'receiving' AND revision > 0 AND ("
                "  complete = 1 AND quiet_since <= ?"
                "  OR quiet_since <= ? AND NOT EXISTS (SELECT 1 FROM feeds WHERE series = number)"
                "  OR quiet_since <= ? AND NOT EXISTS "
                "    (SELECT 1 FROM feeds WHERE series = number AND broken = 0)"
                ") ORDER BY quiet_since LIMIT 1",
                (now, now - quiet_s, now - interrupted_s),
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE series SET state = 'contouring', changed_at = ? WHERE number = ?",
                (now, row["number"]),
            )
            digests: dict[str, list[str]] = {"image": [], "structures": []}
            for item in db.execute(
                "SELECT kind, digest FROM objects WHERE series = ? ORDER BY sop_instance_uid",
                (row["number"],),
            ):
                digests[item["kind"]].append(item["digest"])
        return Job(
            number=row["number"],
            revision=row["revision"],
            images=tuple(digests["image"]),
            structure_sets=tuple(digests["structures"]),
        )

    def finish(
        self, job: Job, *, sop_instance_uid: str, digest: str, destinations: Sequence[str], now: float
    ) -> bool:
        """Take the contours of a series, and have them sent.

        Returns:
            False if they are out of date: more of the series came while they were made.
        """
        with self._database.change() as db:
            current = db.execute(
                "UPDATE series SET state = 'contoured', message = '', changed_at = ? "
                "WHERE number = ? AND state = 'contouring' AND revision = ?",
                (now, job.number, job.revision),
            ).rowcount
            if not current:
                return False
            db.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?)",
                (job.number, job.revision, digest, sop_instance_uid, now),
            )
            db.execute(
                "UPDATE sendings SET state = 'superseded' WHERE series = ? AND state = 'waiting'",
                (job.number,),
            )
            db.executemany(
                "INSERT INTO sendings VALUES (NULL, ?, ?, ?, 'waiting', 0, 0, '')",
                [(job.number, job.revision, destination) for destination in destinations],
            )
        return True

    def fail(self, job: Job, message: str, *, attempts: int, wait_s: float, now: float) -> None:
        """A try failed; after ``attempts`` of them the series is refused, with the message."""
        with self._database.change() as db:
            db.execute(
                "UPDATE series SET attempts = attempts + 1, message = ?, changed_at = ?, quiet_since = ?, "
                "state = CASE WHEN attempts + 1 >= ? THEN 'refused' ELSE 'receiving' END "
                "WHERE number = ? AND state = 'contouring' AND revision = ?",
                (message, now, now + wait_s, attempts, job.number, job.revision),
            )

    def release(self, job: Job) -> None:
        """Give a claimed series back untried: the node stops."""
        with self._database.change() as db:
            db.execute(
                "UPDATE series SET state = 'receiving' WHERE number = ? AND state = 'contouring'",
                (job.number,),
            )

    def retry(self, number: int, *, now: float) -> bool:
        """Try a refused series again, and send what waits or was given up; False if there is nothing."""
        with self._database.change() as db:
            again = db.execute(
                "UPDATE series SET state = 'receiving', attempts = 0, complete = 1, quiet_since = ? "
                "WHERE number = ? AND state = 'refused' AND purged = 0",
                (now, number),
            ).rowcount
            sent = db.execute(
                "UPDATE sendings SET next_at = 0, state = 'waiting' WHERE series = ? AND (state = 'waiting' "
                "OR state = 'given up' AND EXISTS "
                "  (SELECT 1 FROM series WHERE number = sendings.series AND purged = 0))",
                (number,),
            ).rowcount
        return bool(again or sent)

    def table(self, query: str) -> list[dict[str, Any]]:
        """Rows for the status page."""
        return [dict(row) for row in self._database.rows(query)]
