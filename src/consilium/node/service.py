"""The whole node: what listens, what contours, what sends and what asks, each in a thread of its own."""

import fcntl
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread

from consilium.errors import ConfigurationError, ConsiliumError, RunError
from consilium.node.contouring import Contouring, SeriesFiles
from consilium.node.deliver import deliver
from consilium.node.intake import Intake
from consilium.node.objects import ObjectStore, content_digest
from consilium.node.outbox import Sending
from consilium.node.queue import Job, Queue
from consilium.node.receive import Receiver
from consilium.node.settings import DAY_S, NodeSettings
from consilium.node.websource import WebPoller, poll

TICK_S = 0.2
RETRY_S = 30.0
CLEAN_EVERY_S = 600.0
GIB = 2**30
QUEUE, OBJECTS, LOCK = "queue.sqlite", "objects", "lock"


def nothing_to_note(_: str) -> None:
    """A note that goes nowhere."""


class Node:
    """A node on a folder; one at a time.

    Args:
        settings: Everything it is told.
        contouring: How a series is contoured.
        note: Told in a line what happens; no line holds identifiers.
        clock: Seconds since the epoch.

    Raises:
        ConfigurationError: If another node uses the folder.
    """

    def __init__(
        self,
        settings: NodeSettings,
        contouring: Contouring,
        *,
        note: Callable[[str], None] = nothing_to_note,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._note, self._clock = settings, note, clock
        folder = settings.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(folder / LOCK)
        self.queue = Queue(folder / QUEUE)
        self._store = ObjectStore(folder / OBJECTS)
        self._intake = Intake(
            self._store, self.queue, keep_free_bytes=settings.keep_free_gib * GIB, clock=clock
        )
        self._receiver = Receiver(
            settings.receive, settings.allow, intake=self._intake, queue=self.queue, clock=clock
        )
        self._contouring = contouring
        self._destinations = {destination.name: destination for destination in settings.send}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port = 0

    def start(self) -> None:
        """Go on where the last process on this folder ended, and listen."""
        self.queue.resume(self._clock())
        swept = self._store.sweep(self.queue.keeping.kept_digests())
        if swept:
            self._note(f"{swept} files of an interrupted step were cleared away.")
        self.port = self._receiver.start() if self._settings.allow else 0
        loops: list[Callable[[], None]] = [self._contour_all, self._send_all, self._clean_all]
        loops += [self._poller(k) for k in range(len(self._settings.sources))]
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until a loop ends that never should, or `stop` is called elsewhere.

        Raises:
            RunError: If a loop ended by a fault.
        """
        while not self._stop.wait(TICK_S):
            if not all(thread.is_alive() for thread in self._threads):
                raise RunError("node: a part of it ended; what was received is kept. Start it again.")

    def stop(self) -> None:
        """End everything; what was received or under way goes on at the next start."""
        self._stop.set()
        self._receiver.stop()
        for thread in self._threads:
            thread.join(10)
        self._contouring.stop()
        self.queue.close()
        self._lock.close()

    def _contour_all(self) -> None:
        receive = self._settings.receive
        while not self._stop.is_set():
            job = self.queue.claim(
                now=self._clock(), quiet_s=receive.quiet_s, interrupted_s=receive.interrupted_s
            )
            if job is None:
                self._stop.wait(TICK_S)
            else:
                self._contour(job)

    def _contour(self, job: Job) -> None:
        what = f"series no. {job.number} ({len(job.images)} images)"
        self._note(f"{what}: is contoured.")
        files = SeriesFiles(
            images=tuple(map(self._store.path_of, job.images)),
            structure_sets=tuple(map(self._store.path_of, job.structure_sets)),
        )
        with self._store.draft(b"") as out:
            outcome = self._contouring.contour(files, out, self._stop)
            if outcome is None:
                self.queue.release(job)
                return
            if outcome.message:
                attempts = 1 if outcome.lasting else self._settings.attempts
                self.queue.fail(job, outcome.message, attempts=attempts, wait_s=RETRY_S, now=self._clock())
                self._note(f"{what}: {outcome.message}")
                return
            content = out.read_bytes()
        sop_uid = str(dcmread(io.BytesIO(content), specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        digest = content_digest(content)
        self._store.put(content, digest)
        current = self.queue.finish(
            job,
            sop_instance_uid=sop_uid,
            digest=digest,
            destinations=list(self._destinations),
            now=self._clock(),
        )
        if not current:
            self._store.remove(digest)
        said = "contoured." if current else "more of it came; it is contoured again when it is complete."
        self._note(f"{what}: {said}")

    def _send_all(self) -> None:
        while not self._stop.is_set():
            sending = self.queue.outbox.next_sending(self._clock())
            if sending is None:
                self._stop.wait(TICK_S)
            else:
                self._send(sending)

    def _send(self, sending: Sending) -> None:
        what = f"contours of series no. {sending.series}"
        destination = self._destinations.get(sending.destination)
        if destination is None:
            said = f"{sending.destination}: must be in the node's file; it is no longer."
            self.queue.outbox.give_up(sending, said, self._clock())
            self._note(f"{what}: {said} They are not sent there.")
            return
        try:
            content = self._store.path_of(sending.digest).read_bytes()
            deliver(content, destination, ae_title=self._settings.receive.ae_title)
        except (ConsiliumError, OSError) as fault:
            said = str(fault) if isinstance(fault, ConsiliumError) else "their file cannot be read."
            self.queue.outbox.not_sent(sending, said, self._clock())
            if sending.attempts == 0:
                self._note(f"{what}: {said} They are sent again and again until they are taken.")
            return
        self.queue.outbox.sent(sending, self._clock())
        self._note(f"{what}: sent to {sending.destination}.")

    def _clean_all(self) -> None:
        while True:
            for digest in self.queue.keeping.purge(self._clock() - self._settings.keep_days * DAY_S):
                self._store.remove(digest)
            if self._stop.wait(CLEAN_EVERY_S):
                return

    def _poller(self, k: int) -> Callable[[], None]:
        source = self._settings.sources[k]
        poller = WebPoller(source, intake=self._intake, queue=self.queue)
        return lambda: poll(poller, source.every_s, wait=self._stop.wait, note=self._note)


def _locked(path: Path) -> io.TextIOWrapper:
    """The lock of a folder; the system gives it back when the process ends, however it ends."""
    file = path.open("w", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        file.close()
        raise ConfigurationError(
            "folder: only one node may use it; another does. Stop that one, or name another folder."
        ) from fault
    return file
