"""The DICOM side that listens: C-ECHO and C-STORE of CT and RTSTRUCT, from known senders only."""

import logging
import uuid
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    EnhancedCTImageStorage,
    RTStructureSetStorage,
    Verification,
)

from consilium.errors import ConfigurationError
from consilium.node.intake import Intake, Taken
from consilium.node.queue import Queue
from consilium.node.settings import Receive, Sender

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
"""In which objects are taken: those without loss that the importers decode."""
STATUS = {
    Taken.STORED: 0x0000,
    Taken.KNOWN: 0x0000,
    Taken.LEFT_OUT: 0x0000,
    Taken.REFUSED: 0xC000,
    Taken.CONFLICT: 0x0111,
    Taken.FULL: 0xA700,
}
"""C-STORE status (DICOM PS3.4 table B.2-1, PS3.7 annex C)."""
REJECTED_PERMANENTLY, BY_SERVICE_USER = 0x01, 0x01
CALLING_UNKNOWN, CALLED_UNKNOWN = 0x03, 0x07
"""Reasons of a rejection (DICOM PS3.8 table 9-21)."""
REQUEST_S = 20.0
"""Who opens a connection has so long to ask for an association: it counts as one meanwhile."""


class Receiver:
    """Listens while it is started.

    Args:
        settings: Where and how.
        allow: Who may send.
        intake: Takes the objects.
        queue: Told when associations end.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Receive,
        allow: tuple[Sender, ...],
        *,
        intake: Intake,
        queue: Queue,
        clock: Callable[[], float],
    ) -> None:
        silence_network_logs()
        self._settings, self._intake, self._queue, self._clock = settings, intake, queue, clock
        self._senders = {sender.ae_title: sender for sender in allow}
        self._associations: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._server: Any = None
        self._entity = AE(ae_title=settings.ae_title)
        self._entity.maximum_associations = settings.max_associations
        # The library swallows faults of a handler: should `_check_sender` have one, these still hold.
        self._entity.require_calling_aet = list(self._senders)
        self._entity.require_called_aet = True
        self._entity.network_timeout = settings.idle_s
        self._entity.dimse_timeout = settings.idle_s
        self._entity.acse_timeout = min(settings.idle_s, REQUEST_S)
        for sop_class in (Verification, CTImageStorage, EnhancedCTImageStorage, RTStructureSetStorage):
            self._entity.add_supported_context(sop_class, list(SYNTAXES))

    def start(self) -> int:
        """Listen from now on, in threads.

        Returns:
            The port.

        Raises:
            ConfigurationError: If it cannot be listened there.
        """
        handlers = [
            (evt.EVT_REQUESTED, self._check_sender),
            (evt.EVT_ESTABLISHED, self._established),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._cut_off),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        tls = self._settings.tls
        try:
            self._server = self._entity.start_server(
                (self._settings.host, self._settings.port),
                block=False,
                ssl_context=None if tls is None else tls.server_context(),
                evt_handlers=handlers,
            )
        except OSError as fault:
            raise ConfigurationError(
                f"receive: host and port must be free to listen on; {self._settings.host} port "
                f"{self._settings.port} is not ({fault.strerror}). Another node may be running."
            ) from fault
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """End every association and listen no longer."""
        self._entity.shutdown()

    def _check_sender(self, event: Any) -> None:
        request, assoc = event.assoc.requestor.primitive, event.assoc
        sender = self._senders.get(request.calling_ae_title.strip())
        reason = 0
        if sender is None or not sender.may_come_from(str(assoc.requestor.address)):
            reason = CALLING_UNKNOWN
            what = "comes from an address that is not its own" if sender else "is not allowed"
            remedy = "If it may send, add it under [[allow]] of the node's file."
        elif request.called_ae_title.strip() != self._settings.ae_title:
            reason = CALLED_UNKNOWN
            what, remedy = "calls another AE title than the node's", f"Call {self._settings.ae_title}."
        if reason:
            title = "".join(c for c in request.calling_ae_title.strip() if c.isprintable())
            who = f"{title} at {assoc.requestor.address}"
            self._queue.refusals.refuse(who, f"an association: its sender {what}.", remedy, self._clock())
            assoc.acse.send_reject(REJECTED_PERMANENTLY, BY_SERVICE_USER, reason)
            # Else the connection is closed before the rejection is sent.
            assoc.kill()

    def _established(self, event: Any) -> None:
        self._associations[event.assoc] = uuid.uuid4().hex

    def _store(self, event: Any) -> int:
        taken = self._intake.take(
            event.encoded_dataset(),
            association=self._associations[event.assoc],
            sender=str(event.assoc.requestor.ae_title).strip(),
            claimed_uid=str(event.request.AffectedSOPInstanceUID),
        )
        return STATUS[taken]

    def _released(self, event: Any) -> None:
        self._end(event, released=True)

    def _cut_off(self, event: Any) -> None:
        self._end(event, released=False)

    def _closed(self, event: Any) -> None:
        self._end(event, released=False)
        if event.assoc.requestor.primitive is None:
            # Opened and closed without a request, as programs do that watch a port: the library would wait
            # for one until its time is out, and let the connection count as an association meanwhile.
            event.assoc.dul.to_user_queue.put(None)

    def _end(self, event: Any, *, released: bool) -> None:
        association = self._associations.pop(event.assoc, None)
        if association is not None:
            self._queue.end_association(association, released=released)


def silence_network_logs() -> None:
    """Keep the libraries' own logs, which quote patients' data, from going anywhere."""
    for name in ("pynetdicom", "pydicom", "dicomweb_client", "urllib3"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
        logger.handlers[:] = [logging.NullHandler()]
