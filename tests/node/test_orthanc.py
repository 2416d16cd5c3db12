"""Against machines that are not ours: an Orthanc server with its DICOMweb plug-in, and dcmtk's tools."""

import functools
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from consilium.cli.node import build_contourer
from consilium.inference.model import save_model
from consilium.node.contouring import ContourProcess
from consilium.node.deliver import NotDelivered, echo
from consilium.node.settings import Destination, NodeSettings, Receive, Sender, WebSource
from tests.inference.models import small_model
from tests.node.network import (
    LOOPBACK,
    NODE,
    Direct,
    named_series,
    running,
    send,
    series,
    structure_set,
    until,
)

ORTHANC = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STORESCU, ECHOSCU = shutil.which("storescu"), shutil.which("echoscu")

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(ORTHANC is None or not PLUGIN.exists(), reason="orthanc, orthanc-dicomweb absent"),
    pytest.mark.skipif(STORESCU is None or ECHOSCU is None, reason="dcmtk is not installed"),
]


@dataclass(frozen=True)
class Orthanc:
    """A running server."""

    dicom_port: int
    http_port: int

    @property
    def web(self) -> str:
        return f"http://{LOOPBACK}:{self.http_port}/dicom-web"

    @property
    def destination(self) -> Destination:
        return Destination(ae_title="ORTHANC", host=LOOPBACK, port=self.dicom_port)

    def ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://{LOOPBACK}:{self.http_port}{path}", data=body)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def objects(self, modality: str, folder: Path) -> list[Path]:
        """Everything of a modality, as files."""
        found = []
        for one in self.ask("/series?expand"):
            if one["MainDicomTags"]["Modality"] == modality:
                for instance in one["Instances"]:
                    path = folder / f"{instance}.dcm"
                    url = f"http://{LOOPBACK}:{self.http_port}/instances/{instance}/file"
                    with urllib.request.urlopen(url, timeout=20) as answer:
                        path.write_bytes(answer.read())
                    found.append(path)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    server = Orthanc(dicom_port=free_port(), http_port=free_port())
    node_port = free_port()
    configuration = {
        "Name": "test", "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"), "HttpPort": server.http_port,
        "DicomPort": server.dicom_port, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomAlwaysAllowEcho": True, "DicomAlwaysAllowStore": True,
        "DicomModalities": {"node": [NODE, LOOPBACK, node_port]}, "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps(configuration))
    with (tmp_path / "orthanc.log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), str(path)], stdout=log, stderr=log)
        try:
            assert until(lambda: answers(server), 60), (tmp_path / "orthanc.log").read_text()[-2000:]
            yield server
        finally:
            process.terminate()
            process.wait(20)


def answers(server: Orthanc) -> bool:
    try:
        return bool(server.ask("/system"))
    except OSError:
        return False


def settings(folder: Path, orthanc: Orthanc, **changes: Any) -> NodeSettings:
    base = NodeSettings(
        folder=folder,
        models=(Path("none"),),
        receive=Receive(port=0, quiet_s=0.5, interrupted_s=5),
        allow=(
            Sender(ae_title="ORTHANC", addresses=(LOOPBACK,)),
            Sender(ae_title="DCMTK", addresses=(LOOPBACK,)),
        ),
        send=(orthanc.destination,),
        keep_free_gib=0.0,
    )
    return replace(base, **changes)


def test_orthanc_sends_a_ct_and_gets_its_rtstruct_back(tmp_path: Path, orthanc: Orthanc) -> None:
    """C-STORE both ways, with a real model in the process that contours."""
    images = series(tmp_path, "one", slices=12)
    model = small_model()
    save_model(tmp_path / "model.consilium", model.description, model.network.state_dict())
    build = functools.partial(build_contourer, (tmp_path / "model.consilium",), "rtstruct")
    with running(settings(tmp_path / "node", orthanc), ContourProcess(build)) as node:
        for path in sorted((tmp_path / "one").iterdir()):
            orthanc.ask("/instances", path.read_bytes())
        body = json.dumps({"AET": NODE, "Host": LOOPBACK, "Port": node.port, "Manufacturer": "Generic"})
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{orthanc.http_port}/modalities/live", data=body.encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=20).close()
        (found,) = orthanc.ask("/series")
        orthanc.ask("/modalities/live/store", found.encode())
        assert until(lambda: len(orthanc.ask("/instances")) == 13, 300), node.queue.table(
            "SELECT * FROM series"
        )
        (path,) = orthanc.objects("RTSTRUCT", tmp_path)
        structures = dcmread(path)
        assert named_series(structures) == images[0].SeriesInstanceUID
        assert [str(roi.ROIName) for roi in structures.StructureSetROISequence] == ["Bladder", "Rectum"]
        assert structures.ApprovalStatus == "UNAPPROVED"
        assert structures.PatientID == images[0].PatientID
        # The same study: what the PACS shows beside each other.
        assert len(orthanc.ask("/studies")) == 1


def test_a_dicomweb_service_as_source_and_destination(tmp_path: Path, orthanc: Orthanc) -> None:
    """QIDO-RS and WADO-RS in, STOW-RS out; a series that grows between two questions is waited for."""
    images = series(tmp_path, "one", slices=6)
    for image in images:
        image.StudyDate = date.today().strftime("%Y%m%d")
    source = WebSource(url=orthanc.web, every_s=0.5)
    chosen = settings(
        tmp_path / "node", orthanc, allow=(), send=(Destination(url=orthanc.web),), sources=(source,)
    )
    assert send(images, orthanc.dicom_port, called="ORTHANC") == [0x0000] * 6
    with running(chosen, Direct()) as node:
        assert until(lambda: len(orthanc.ask("/instances")) == 7, 60), node.queue.table(
            "SELECT * FROM series"
        )
        time.sleep(2)
        assert len(orthanc.ask("/instances")) == 7
        assert node.queue.table("SELECT state, revision FROM series") == [
            {"state": "contoured", "revision": 6}
        ]
    (path,) = orthanc.objects("RTSTRUCT", tmp_path)
    assert named_series(dcmread(path)) == images[0].SeriesInstanceUID


def test_dcmtk_speaks_with_the_node(tmp_path: Path, orthanc: Orthanc) -> None:
    series(tmp_path, "one")
    images = [dcmread(path) for path in sorted((tmp_path / "one").iterdir())]
    structure_set(images).save_as(tmp_path / "one" / "structures.dcm", enforce_file_format=True)
    with running(settings(tmp_path / "node", orthanc)) as node:
        port = str(node.port)
        who = ["-aet", "DCMTK", "-aec", NODE, LOOPBACK, port]
        assert subprocess.run([str(ECHOSCU), *who], check=False).returncode == 0
        stranger = ["-aet", "STRANGER", "-aec", NODE, LOOPBACK, port]
        refused = subprocess.run([str(ECHOSCU), *stranger], check=False, capture_output=True, text=True)
        assert refused.returncode != 0
        assert "Calling AE Title Not Recognized" in refused.stderr
        files = [str(path) for path in sorted((tmp_path / "one").iterdir())]
        sent = subprocess.run([str(STORESCU), *who, *files], check=False, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        assert until(lambda: len(orthanc.objects("RTSTRUCT", tmp_path)) == 1, 60)
        broken = tmp_path / "broken.dcm"
        damaged = dcmread(files[0])
        damaged.SOPInstanceUID = damaged.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        del damaged.PixelSpacing
        damaged.save_as(broken)
        sent = subprocess.run(
            [str(STORESCU), "-v", *who, str(broken)], check=False, capture_output=True, text=True
        )
        assert "Error" in sent.stdout + sent.stderr
        assert node.queue.table("SELECT count(*) AS n FROM refusals WHERE sender = 'DCMTK'") == [{"n": 1}]


def test_a_destination_is_asked_whether_it_answers(orthanc: Orthanc) -> None:
    echo(orthanc.destination, ae_title=NODE)
    echo(Destination(url=orthanc.web), ae_title=NODE)
    nobody = Destination(ae_title="NOBODY", host=LOOPBACK, port=free_port())
    with pytest.raises(NotDelivered, match="NOBODY"):
        echo(nobody, ae_title=NODE)
