"""What was not taken, and why; what was taken and is none of the node's business."""

from consilium.node.database import NodeDatabase

MAX_REFUSALS = 1000
"""So many different refusals are listed; the oldest make room."""


class Refusals:
    """The two lists; neither holds identifiers of patients."""

    def __init__(self, database: NodeDatabase) -> None:
        self._database = database

    def refuse(self, sender: str, reason: str, remedy: str, now: float) -> None:
        """List what was not taken."""
        with self._database.change() as db:
            db.execute(
                "INSERT INTO refusals VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE "
                "SET count = count + 1, last_at = excluded.last_at",
                (sender, reason, remedy, now),
            )
            db.execute(
                "DELETE FROM refusals WHERE rowid IN "
                "(SELECT rowid FROM refusals ORDER BY last_at DESC LIMIT -1 OFFSET ?)",
                (MAX_REFUSALS,),
            )

    def leave_out(self, reason: str) -> None:
        """Count what is none of the node's business."""
        with self._database.change() as db:
            db.execute(
                "INSERT INTO left_out VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (reason,)
            )
