"""The coordinator's counter: answers what sites ask, hands out the open round's model, takes in updates
piece by piece.

Sites only ever ask; nothing is pushed to them. Whatever carries the frames (a thread, a socket, the engine)
tells the desk who is asking, as it authenticated it.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from consilium.errors import DataError, FederationError
from consilium.federation.audit import AuditLog
from consilium.federation.frames import CHUNK_BYTES, Bytes, decode_frame, encode_frame
from consilium.federation.settings import FederationSettings
from consilium.federation.uploads import Arrival, Uploads

MAX_STEPS = 1000
"""Rounds of the audit log in one answer; a site that was away for longer asks again."""


class Clock(Protocol):
    """Seconds that only go forwards; tests bring their own."""

    def __call__(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the desk tells about the open round."""

    round_number: int
    rounds: int
    model: Path
    model_digest: str
    job_digest: str
    site_options: Mapping[str, float]
    last_counted: Mapping[str, int]
    max_update_bytes: int


@dataclass
class _Presence:
    """Which process speaks for a site, and when it was last heard."""

    instance: str
    heard_s: float


class Desk:
    """See the module's docstring.

    Args:
        settings: The federation.
        audit: Its log; sites follow its heads.
        clock: Seconds, monotonic.
        spool: Folder for updates on their way in; None keeps them in memory (small models, simulation).
        report: Called with (event, site, details) for what happens at the desk.
    """

    def __init__(
        self,
        settings: FederationSettings,
        audit: AuditLog,
        *,
        clock: Clock,
        spool: Path | None = None,
        report: Callable[[str, str, str], None] = lambda event, site, detail: None,
    ) -> None:
        self._settings = settings
        self._audit = audit
        self._clock = clock
        self._report = report
        self._lock = threading.Lock()
        self._notice: Notice | None = None
        self._final: Notice | None = None
        self._uploads = Uploads(spool, self._complain)
        self._verdicts: dict[str, tuple[int, str, str]] = {}
        self._presences: dict[str, _Presence] = {}
        self._served: set[str] = set()
        self._complaints: set[tuple[str, str]] = set()

    # --- what run_rounds does -------------------------------------------------------------------------------

    def publish(self, notice: Notice) -> None:
        """Open a round: from now on sites that ask receive it."""
        with self._lock:
            self._uploads.drop()
            self._verdicts.clear()
            self._complaints.clear()
            self._notice = notice

    def close(self) -> None:
        """Close the round: updates that come now are late."""
        with self._lock:
            self._notice = None
            self._uploads.drop()

    def finish(self, notice: Notice) -> None:
        """The run is over: sites that ask receive the final model."""
        with self._lock:
            self._notice = None
            self._final = notice

    def receive(self, timeout_s: float) -> Arrival | None:
        """The next update that has arrived whole; None after ``timeout_s``."""
        return self._uploads.take(timeout_s)

    def settle(self, arrival: Arrival, verdict: str, reason: str = "", *, keep: bool = False) -> None:
        """Tell the site what became of its update (``accepted`` or ``refused``) and drop the bytes unless
        ``keep``.
        """
        with self._lock:
            self._verdicts[arrival.site] = (arrival.round_number, verdict, reason)
        self._uploads.mark_judged(arrival, keep=keep)

    def list_present(self) -> set[str]:
        """Sites heard within ``presence_s``."""
        now = self._clock()
        with self._lock:
            return {s for s, p in self._presences.items() if now - p.heard_s <= self._settings.presence_s}

    def list_served(self) -> set[str]:
        """Sites that have said that they hold the final model."""
        return set(self._served)

    # --- what sites ask -------------------------------------------------------------------------------------

    def answer(self, site: str, request: Bytes) -> bytes:
        """Answer one request of ``site``, whose name the transport vouches for. Never raises for what a site
        sends.
        """
        try:
            header, body = decode_frame(request)
            ask = header.get("ask")
            refusal = self._check_presence(site, header)
            if refusal:
                return encode_frame({"say": "refused", "why": refusal})
            if ask == "hello":
                if self._final is not None and header.get("final") == self._final.model_digest:
                    self._served.add(site)
                return encode_frame({"say": "heard"})
            if ask == "task":
                return encode_frame(self._answer_task(site, header))
            if ask == "model":
                return self._answer_model(site, header)
            if ask == "offer":
                return encode_frame(self._answer_offer(site, header))
            if ask == "put":
                return encode_frame(
                    self._uploads.put(site, str(header["digest"]), int(header["offset"]), body)
                )
            return encode_frame({"say": "refused", "why": "unknown request"})
        except FileNotFoundError:
            # The round was committed, and its model removed, while this was answered.
            return encode_frame({"say": "stale"})
        except (DataError, LookupError, TypeError, ValueError, OverflowError, AttributeError) as fault:
            self._complain(site, f"malformed request ({type(fault).__name__})")
            return encode_frame({"say": "refused", "why": "malformed request"})

    def _complain(self, site: str, why: str, *, kind: str = "") -> None:
        """Report once per round, so that a loud site cannot fill the log.

        Args:
            site: Who.
            why: For people.
            kind: What makes two complaints one, where ``why`` holds numbers that the site chose.
        """
        if (site, kind or why) not in self._complaints:
            self._complaints.add((site, kind or why))
            # A log that cannot be written ends the run where it commits, with the reason; not this answer.
            with contextlib.suppress(FederationError):
                self._report("refused", site, why)

    def _check_presence(self, site: str, header: Mapping[str, Any]) -> str | None:
        """Refuse strangers, other jobs and a second live process with one identity."""
        if self._settings.get_site(site) is None:
            self._complain("unknown", "a site that is not enrolled asked")
            return "this site is not enrolled"
        if header.get("site") != site:
            self._complain(site, "it used another site's name")
            return "the request bears another site's name"
        instance = header["instance"]
        if not isinstance(instance, str) or not 8 <= len(instance) <= 64:
            raise ValueError(instance)
        now = self._clock()
        with self._lock:
            known = self._presences.get(site)
            if known and known.instance != instance and now - known.heard_s <= self._settings.presence_s:
                self._complain(site, "a second live process uses its identity")
                left = self._settings.presence_s - (now - known.heard_s)
                return f"another live process uses this site's identity; if it has ended, ask in {left:.0f} s"
            self._presences[site] = _Presence(instance, now)
        if header.get("job") not in (None, self._settings.digest):
            return "the site approved other settings than this federation's"
        return None

    def _answer_task(self, site: str, header: Mapping[str, Any]) -> dict[str, Any]:
        seen, head_seen = int(header["audit"][0]), header["audit"][1]
        if seen < -1 or self._audit.head_after(seen) != head_seen:
            self._complain(site, f"it keeps a head of round {seen} that this log does not have", kind="head")
            return {"say": "refused", "why": "this log does not contain the head that the site keeps"}
        steps = self._audit.list_steps(seen)[:MAX_STEPS]
        head = self._audit.head_after(seen + len(steps))
        answer: dict[str, Any] = {"say": "wait", "job": self._settings.digest, "head": head, "steps": steps}
        with self._lock:
            notice, final, verdict = self._notice, self._final, self._verdicts.get(site)
        if verdict is not None:
            answer["verdict"] = list(verdict)
        if final is not None:
            return answer | {"say": "finished"} | _describe(final, site)
        if notice is None:
            return answer | {"why": "the coordinator is combining a round"}
        counted = verdict is not None and verdict[:2] == (notice.round_number, "accepted")
        if counted or self._uploads.has_whole(site):
            return answer | {
                "why": f"round {notice.round_number} waits for other sites",
                "round": notice.round_number,
            }
        return answer | {"say": "train"} | _describe(notice, site)

    def _answer_model(self, site: str, header: Mapping[str, Any]) -> bytes:
        with self._lock:
            notice = self._final or self._notice
        if notice is None or notice.model_digest != header["digest"]:
            return encode_frame({"say": "stale"})
        offset, length = int(header["offset"]), min(int(header["length"]), CHUNK_BYTES)
        if offset < 0 or length < 1:
            raise ValueError("offset or length")
        with notice.model.open("rb") as file:
            file.seek(offset)
            piece = file.read(length)
        return encode_frame({"say": "piece", "offset": offset}, piece)

    def _answer_offer(self, site: str, header: Mapping[str, Any]) -> dict[str, Any]:
        round_number, size, digest = int(header["round"]), int(header["size"]), str(header["digest"])
        with self._lock:
            notice, verdict = self._notice, self._verdicts.get(site)
        if notice is None or round_number != notice.round_number:
            now = "no round is open" if notice is None else f"round {notice.round_number} is open"
            late = notice is None or round_number < notice.round_number
            why = f"round {round_number} is {'closed' if late else 'not open yet'}; {now}"
            self._complain(site, f"late update: {why}", kind="late")
            return {"say": "refused", "why": why}
        if not 8 <= size <= notice.max_update_bytes:
            why = f"an update may have {notice.max_update_bytes} bytes; {size} are offered"
            self._complain(site, why, kind="size")
            return {"say": "refused", "why": why}
        if verdict is not None and verdict[:2] == (round_number, "accepted"):
            return {"say": "have"}
        return self._uploads.offer(site, round_number, size, digest)


def _describe(notice: Notice, site: str) -> dict[str, Any]:
    return {
        "round": notice.round_number,
        "rounds": notice.rounds,
        "model": notice.model_digest,
        "size": notice.model.stat().st_size,
        "options": dict(notice.site_options),
        "last_counted": notice.last_counted.get(site, -1),
    }
