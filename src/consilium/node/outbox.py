"""Results on their way to destinations: sent again and again until they are taken."""

from dataclasses import dataclass

from consilium.node.database import NodeDatabase

MAX_WAIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Sending:
    """A result that is to go to a destination."""

    number: int
    series: int
    destination: str
    digest: str
    attempts: int


class Outbox:
    """What is to be sent."""

    def __init__(self, database: NodeDatabase) -> None:
        self._database = database

    def next_sending(self, now: float) -> Sending | None:
        """What is to be sent next; None if nothing is due."""
        rows = self._database.rows(
            "SELECT s.number, s.series, s.destination, s.attempts, r.digest FROM sendings AS s "
            "JOIN results AS r ON r.series = s.series AND r.revision = s.revision "
            "WHERE s.state = 'waiting' AND s.next_at <= ? ORDER BY s.next_at, s.number LIMIT 1",
            now,
        )
        return Sending(**dict(rows[0])) if rows else None

    def sent(self, sending: Sending, now: float) -> None:
        """The destination has it."""
        with self._database.change() as db:
            db.execute(
                "UPDATE sendings SET state = 'sent', message = '', next_at = ?, attempts = attempts + 1 "
                "WHERE number = ?",
                (now, sending.number),
            )

    def give_up(self, sending: Sending, message: str, now: float) -> None:
        """It is not tried again by itself, and keeps the series' content no longer than one that was sent."""
        with self._database.change() as db:
            db.execute(
                "UPDATE sendings SET state = 'given up', message = ?, next_at = ?, attempts = attempts + 1 "
                "WHERE number = ?",
                (message, now, sending.number),
            )

    def not_sent(self, sending: Sending, message: str, now: float) -> None:
        """It is tried again, after twice the time each time, up to ten minutes."""
        wait = min(MAX_WAIT_S, 2.0 ** min(sending.attempts, 20))
        with self._database.change() as db:
            db.execute(
                "UPDATE sendings SET message = ?, next_at = ?, attempts = attempts + 1 WHERE number = ?",
                (message, now + wait, sending.number),
            )
