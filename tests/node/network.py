"""The other machines of a node's tests, on loopback: tiny series, a sender, a PACS, false contourers."""

import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from pynetdicom.transport import AssociationSocket

from consilium.errors import ConfigurationError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.node.contouring import Outcome, SeriesFiles
from consilium.node.receive import silence_network_logs
from consilium.node.service import Node
from consilium.node.settings import Destination, NodeSettings, Receive, Sender
from consilium.phantoms.dicom import SeriesIdentity, write_series


def close_socket(association: AssociationSocket) -> None:
    """The library's own leaves a socket open whose peer is gone, for there shutting it down raises."""
    if association.socket is not None:
        with contextlib.suppress(OSError):
            association.socket.shutdown(socket.SHUT_RDWR)
        association.socket.close()


silence_network_logs()
AssociationSocket._shutdown_socket = close_socket
SENDER, NODE, PACS = "SCANNER", "CONSILIUM", "PACS"
LOOPBACK = "127.0.0.1"


def series(folder: Path, label: str, slices: int = 4, seed: int = 0) -> list[Dataset]:
    """A CT of random values, 8 × 8 pixels a slice."""
    values = np.random.default_rng(seed).integers(-1000, 1000, (slices, 8, 8), dtype=np.int16)
    grid = Grid((slices, 8, 8), Affine.from_spacing((3.0, 2.0, 2.0)))
    write_series(folder / label, Volume(values, grid), SeriesIdentity(label=label))
    return [dcmread(path) for path in sorted((folder / label).iterdir())]


def structure_set(images: Sequence[Dataset]) -> Dataset:
    """An RTSTRUCT without contours that names the series of ``images``."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "RTSTRUCT"
    dataset.PatientName, dataset.PatientID = images[0].PatientName, images[0].PatientID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = images[0].StudyInstanceUID, generate_uid()
    named, study, frame = Dataset(), Dataset(), Dataset()
    named.SeriesInstanceUID = images[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = [named]
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    return dataset


def named_series(structures: Dataset) -> str:
    """The series that an RTSTRUCT names."""
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    return str(frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID)


def build_fake() -> Callable[[SeriesFiles, Path], Outcome]:
    """A contourer that writes an empty RTSTRUCT, with a new UID each time it is asked."""

    def contour(files: SeriesFiles, out: Path) -> Outcome:
        images = [dcmread(path) for path in files.images]
        if len({str(image.SeriesInstanceUID) for image in images}) != 1:
            return Outcome(message="must be one series.", lasting=True)
        dcmwrite(out, structure_set(images), enforce_file_format=True)
        return Outcome()

    return contour


class Direct:
    """Contours in the node's own process: quick to start."""

    def __init__(self, contourer: Callable[[SeriesFiles, Path], Outcome] | None = None) -> None:
        self._contourer = contourer or build_fake()

    def contour(self, files: SeriesFiles, out: Path, stop: threading.Event) -> Outcome | None:
        """Contour a series."""
        return None if stop.is_set() else self._contourer(files, out)

    def stop(self) -> None:
        """Nothing is held."""


def build_refusing() -> Callable[[SeriesFiles, Path], Outcome]:
    """A contourer that finds every series unusable."""
    return lambda files, out: Outcome(message=f"{len(files.images)} slices are too few.", lasting=True)


def build_dying() -> Callable[[SeriesFiles, Path], Outcome]:
    """A contourer that takes its process down, as when the memory is not enough."""
    return lambda files, out: os._exit(9)


def build_without_model() -> Callable[[SeriesFiles, Path], Outcome]:
    """No contourer: the model is not where the file says."""
    raise ConfigurationError("model.consilium: the file must exist; it does not.")


class Pacs:
    """A storage SCP that keeps what it is sent; ``refuse`` makes it answer with a failure so many times."""

    def __init__(self, *, refuse: int = 0, ssl_context: Any = None) -> None:
        self.got: list[Dataset] = []
        self.refuse = refuse
        self._lock = threading.Lock()
        entity = AE(ae_title=PACS)
        entity.add_supported_context("1.2.840.10008.1.1")
        entity.add_supported_context(RTStructureSetStorage, [ExplicitVRLittleEndian, "1.2.840.10008.1.2"])
        entity.require_called_aet = True
        self._server: Any = entity.start_server(
            (LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)], ssl_context=ssl_context
        )
        self._entity = entity

    @property
    def destination(self) -> Destination:
        """Where it is."""
        return Destination(ae_title=PACS, host=LOOPBACK, port=self._server.server_address[1])

    def stop(self) -> None:
        """Listen no longer."""
        self._entity.shutdown()

    def _take(self, event: Any) -> int:
        with self._lock:
            if self.refuse:
                self.refuse -= 1
                return 0xA700
            self.got.append(dcmread(io.BytesIO(event.encoded_dataset())))
        return 0x0000


def settings(folder: Path, pacs: Pacs, **receive: Any) -> NodeSettings:
    """Of a node on loopback that is quick to take a series for complete."""
    return NodeSettings(
        folder=folder,
        models=(Path("none"),),
        receive=replace(Receive(port=0, quiet_s=0.3, interrupted_s=1.5), **receive),
        allow=(Sender(ae_title=SENDER, addresses=("127.0.0.0/8",)),),
        send=(pacs.destination,),
        keep_free_gib=0.0,
    )


@contextlib.contextmanager
def running(chosen: NodeSettings, contouring: Any = None) -> Iterator[Node]:
    """A node, started and stopped."""
    node = Node(chosen, contouring or Direct())
    node.start()
    try:
        yield node
    finally:
        node.stop()


def associate(port: int, *, calling: str = SENDER, called: str = NODE, tls_args: Any = None) -> Any:
    """An association with the node, or with whoever answers there."""
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.connection_timeout = 5
    for sop_class in (CTImageStorage, RTStructureSetStorage, "1.2.840.10008.1.1"):
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    return entity.associate(LOOPBACK, port, ae_title=called, tls_args=tls_args)


def send(datasets: Sequence[Dataset], port: int, **association: Any) -> list[int | None]:
    """C-STORE everything in one association and release it: the statuses; None where none came."""
    assoc = associate(port, **association)
    assert assoc.is_established
    statuses = [assoc.send_c_store(dataset).get("Status") for dataset in datasets]
    assoc.release()
    return statuses


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Wait for something to hold."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return holds()
