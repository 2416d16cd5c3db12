"""Updates on their way in: piece by piece, continued after a reset, bounded in size and number, on disk or
in memory.
"""

import ctypes
import hashlib
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilium.federation.messages import DIGEST

MAX_WAITING = 4
"""Updates in memory at a time; a site that comes then is asked to wait, so memory stays flat."""

ROOM_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An update that has arrived whole and waits to be judged."""

    site: str
    round_number: int
    content: Path | bytes
    digest: str


@dataclass
class _Upload:
    """An update on its way in."""

    round_number: int
    size: int
    digest: str
    place: Path | None
    content: bytearray = field(default_factory=bytearray)
    running: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    received: int = 0
    whole: bool = False

    def store(self, body: memoryview) -> None:
        """Keep one more piece."""
        if self.place is None:
            self.content += body
        else:
            with self.place.open("r+b" if self.received else "wb") as file:
                file.seek(self.received)
                file.write(body)
        self.running.update(body)
        self.received += len(body)

    def has_digest(self) -> bool:
        """Whether what arrived is what was offered."""
        return self.running.hexdigest() == self.digest

    def discard(self) -> None:
        """Remove what was stored."""
        if self.place is not None:
            self.place.unlink(missing_ok=True)
        self.content = bytearray()


def trim_heap() -> None:
    """Give the system back what pieces of a transfer left free in the heap (glibc; elsewhere nothing)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
        trim(0)


class Uploads:
    """One upload per site at most.

    Args:
        spool: Folder for the bytes; None keeps them in memory (small models, simulation).
        complain: Told (site, why) when something could not be taken.
    """

    def __init__(self, spool: Path | None, complain: Callable[[str, str], None]) -> None:
        self._spool = spool
        self._complain = complain
        self._lock = threading.Condition()
        self._by_site: dict[str, _Upload] = {}
        self._arrivals: queue.Queue[Arrival] = queue.Queue()
        self._waiting = 0
        if spool is not None:
            spool.mkdir(parents=True, exist_ok=True)
            for leftover in spool.glob("*.update"):
                leftover.unlink()

    def take(self, timeout_s: float) -> Arrival | None:
        """The next update that is whole; None after ``timeout_s``."""
        try:
            return self._arrivals.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def mark_judged(self, arrival: Arrival, *, keep: bool) -> None:
        """Make room, and remove the bytes unless ``keep``."""
        with self._lock:
            self._waiting -= 1
            self._lock.notify_all()
            self._by_site.pop(arrival.site, None)
        if isinstance(arrival.content, Path) and not keep:
            arrival.content.unlink(missing_ok=True)
        trim_heap()

    def drop(self) -> None:
        """The round is closed: forget what is under way and what was not judged."""
        with self._lock:
            for upload in self._by_site.values():
                upload.discard()
            self._by_site.clear()
            while not self._arrivals.empty():
                self._arrivals.get_nowait()
            self._waiting = 0
            self._lock.notify_all()

    def has_whole(self, site: str) -> bool:
        """Whether an update of the site has arrived and waits to be judged."""
        with self._lock:
            upload = self._by_site.get(site)
            return upload is not None and upload.whole

    def offer(self, site: str, round_number: int, size: int, digest: str) -> dict[str, Any]:
        """Answer to an offered update: send from some offset, have it already, or busy."""
        if not DIGEST.fullmatch(digest):
            raise ValueError("digest")
        with self._lock:
            upload = self._by_site.get(site)
            if upload is not None and upload.whole:
                if upload.digest == digest:
                    return {"say": "have"}
                return {
                    "say": "refused",
                    "why": "another update of this site for this round waits to be judged",
                }
            if upload is not None and (upload.digest, upload.size) == (digest, size):
                return {"say": "send", "offset": upload.received}
            if upload is not None:
                upload.discard()
                del self._by_site[site]
            if self._spool is None and not self._lock.wait_for(self._has_room, ROOM_TIMEOUT_S):
                return {"say": "busy"}
            place = (
                None if self._spool is None else self._spool / f"{site}-{round_number}-{digest[:16]}.update"
            )
            self._by_site[site] = _Upload(round_number, size, digest, place)
            return {"say": "send", "offset": 0}

    def _has_room(self) -> bool:
        return self._waiting + sum(not other.whole for other in self._by_site.values()) < MAX_WAITING

    def put(self, site: str, digest: str, offset: int, body: memoryview) -> dict[str, Any]:
        """Take one piece; the last one makes the update arrive."""
        with self._lock:
            upload = self._by_site.get(site)
            if upload is None or upload.whole or digest != upload.digest:
                return {"say": "stale"}
            if offset != upload.received or upload.received + len(body) > upload.size or not len(body):
                return {"say": "send", "offset": upload.received}
            try:
                upload.store(body)
            except OSError as fault:
                self._complain(site, f"its update could not be stored ({fault.strerror})")
                return {"say": "busy"}
            if upload.received < upload.size:
                return {"say": "send", "offset": upload.received}
            if not upload.has_digest():
                upload.discard()
                del self._by_site[site]
                return {"say": "stale"}
            upload.whole = True
            self._waiting += 1
            content = upload.place if upload.place is not None else bytes(upload.content)
            upload.content = bytearray()
            arrival = Arrival(
                site=site, round_number=upload.round_number, content=content, digest=upload.digest
            )
            self._arrivals.put(arrival)
            return {"say": "have"}
