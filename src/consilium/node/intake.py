"""Taking one object in: looked at, kept on the disk, noted in the queue; only then is it received."""

import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from consilium.errors import RefusedInput
from consilium.importers.dicom_scan import RTSTRUCT, DicomObject, LeftOut, read_object
from consilium.importers.dicom_series import SliceHeader
from consilium.importers.dicom_study import references_of
from consilium.node.objects import ObjectStore, content_digest
from consilium.node.queue import Queue

ELEMENT_HEADER_BYTES = 8


class Taken(Enum):
    """What became of an object. FULL: the disk is; nothing was taken."""

    STORED = "stored"
    KNOWN = "known"
    LEFT_OUT = "left out"
    REFUSED = "refused"
    CONFLICT = "conflict"
    FULL = "full"


class Intake:
    """Takes objects, from whatever way they come.

    Args:
        store: Where their content goes.
        queue: Where they are noted.
        keep_free_bytes: Nothing is taken while the disk has less left.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        store: ObjectStore,
        queue: Queue,
        *,
        keep_free_bytes: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._queue = store, queue
        self._keep_free_bytes, self._clock = keep_free_bytes, clock

    def take(self, content: bytes, *, association: str, sender: str, claimed_uid: str = "") -> Taken:
        """Take an object with its file's preamble and group 0002.

        Args:
            content: All of it.
            association: Within which it came.
            sender: AE title or host, for the list of refusals.
            claimed_uid: SOP Instance UID that the sender named; "": none.

        Returns:
            What became of it. After STORED and KNOWN it survives a power cut.
        """
        if self._store.free_bytes() < self._keep_free_bytes:
            return Taken.FULL
        digest = content_digest(content)
        try:
            with self._store.draft(content) as path:
                sop_uid, series_uid, kind = _examined(path, claimed_uid)
        except LeftOut as reason:
            self._queue.refusals.leave_out(str(reason))
            return Taken.LEFT_OUT
        except RefusedInput as refusal:
            self._queue.refusals.refuse(
                sender, f"{refusal.where}: {refusal.reason}", refusal.remedy, self._clock()
            )
            return Taken.REFUSED
        if self._queue.is_ours(sop_uid):
            return Taken.KNOWN
        known = self._queue.digest_of(sop_uid)
        if known not in (None, digest):
            self._queue.refusals.refuse(
                sender,
                "an object: one SOP Instance UID must always have one content; it came before with another.",
                "Find out which is right. Send the right one under a UID of its own.",
                self._clock(),
            )
            return Taken.CONFLICT
        if known is None:
            self._store.put(content, digest)
        # A known one is noted too: its sender is here again, and what it broke off may now be made up for.
        self._queue.add(
            sop_uid, series_uid, kind=kind, digest=digest, feed=(association, sender), now=self._clock()
        )
        return Taken.STORED if known is None else Taken.KNOWN


def _examined(path: Path, claimed_uid: str) -> tuple[str, str, str]:
    """SOP Instance UID, UID of the image series it belongs to, and kind: ``"image"`` or ``"structures"``.

    Raises:
        LeftOut: If it is none of the node's business.
        RefusedInput: If it is malformed.
    """
    found = read_object(path)
    if found is None:
        raise RefusedInput("an object", "must be DICOM; it is not.", "Send it again from its source.")
    if isinstance(found, DicomObject):
        return _structure_set(found, claimed_uid)
    identity, headers = found
    for header in headers:
        _check_pixels(header, path.stat().st_size)
    uid = headers[0].sop_instance_uid
    if not identity.series_instance_uid or not identity.study_instance_uid:
        raise RefusedInput(
            "an image", "must name its study and series; it does not.", "Send it from its source."
        )
    _check_claim(uid, claimed_uid, "an image")
    return uid, identity.series_instance_uid, "image"


def _structure_set(found: DicomObject, claimed_uid: str) -> tuple[str, str, str]:
    if found.sop_class_uid != RTSTRUCT:
        raise LeftOut("DICOM SEG (the node takes CT and RTSTRUCT)")
    _check_claim(found.sop_instance_uid, claimed_uid, "an RTSTRUCT")
    named, _ = references_of(found, "an RTSTRUCT")
    series = sorted(named - {""})
    if not series:
        raise RefusedInput(
            "an RTSTRUCT", "must name the CT that it was drawn on; it does not.", "Export it with its CT."
        )
    return found.sop_instance_uid, series[0], "structures"


def _check_claim(uid: str, claimed_uid: str, where: str) -> None:
    if claimed_uid and uid != claimed_uid:
        raise RefusedInput(
            where,
            "must have the SOP Instance UID that it was announced with; it has another.",
            "Send it anew.",
        )


def _check_pixels(header: SliceHeader, size: int) -> None:
    stored = header.stored
    if stored.pixel_data_at is None:
        return
    needed = (
        stored.pixel_data_at + ELEMENT_HEADER_BYTES + (stored.frame_index + 1) * stored.format.frame_bytes
    )
    if size < needed:
        raise RefusedInput(
            "an image", f"must have all its pixels; {needed - size} bytes are missing.", "Send it again."
        )
