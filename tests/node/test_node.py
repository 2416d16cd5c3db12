"""A whole node on loopback: what is received, contoured, sent, refused, and what survives."""

import os
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import config, dcmread
from pydicom.uid import generate_uid

from consilium.errors import ConfigurationError
from consilium.node.contouring import ContourProcess, Outcome, SeriesFiles
from consilium.node.objects import content_digest
from consilium.node.page import read_status
from consilium.node.service import Node
from consilium.node.settings import DAY_S, Destination, Sender, Tls
from tests.node.network import (
    LOOPBACK,
    NODE,
    Direct,
    Pacs,
    associate,
    build_dying,
    build_fake,
    build_refusing,
    build_without_model,
    named_series,
    running,
    send,
    series,
    settings,
    structure_set,
    until,
)


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    pacs = Pacs()
    yield pacs
    pacs.stop()


def sql(node: Node, query: str) -> list[dict[str, object]]:
    return node.queue.table(query)


def states(node: Node) -> Counter[str]:
    return Counter(str(row["state"]) for row in sql(node, "SELECT state FROM series"))


def test_a_series_is_contoured_once_and_its_contours_are_sent_back(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "one")
    with running(settings(tmp_path / "node", pacs)) as node:
        assert send(images, node.port) == [0x0000] * 4
        assert until(lambda: bool(pacs.got))
        assert named_series(pacs.got[0]) == images[0].SeriesInstanceUID
        # The PACS forwards everything, our own contours too; and the scanner sends its series once more.
        assert send([pacs.got[0], *images], node.port) == [0x0000] * 5
        time.sleep(1)
        assert len(pacs.got) == 1
        assert states(node) == {"contoured": 1}


def test_structure_sets_go_with_the_series_they_were_drawn_on(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "one")
    with running(settings(tmp_path / "node", pacs)) as node:
        assert send([structure_set(images), *images], node.port) == [0x0000] * 5
        assert until(lambda: bool(pacs.got))
        job_objects = sql(node, "SELECT kind, count(*) AS n FROM objects GROUP BY kind ORDER BY kind")
        assert job_objects == [{"kind": "image", "n": 4}, {"kind": "structures", "n": 1}]


def test_a_series_in_an_open_association_is_not_complete(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "one")
    with running(settings(tmp_path / "node", pacs)) as node:
        assoc = associate(node.port)
        for image in images[:2]:
            assoc.send_c_store(image)
        time.sleep(1)
        assert states(node) == {"receiving": 1}
        for image in images[2:]:
            assoc.send_c_store(image)
        assoc.release()
        assert until(lambda: bool(pacs.got))
        assert sql(node, "SELECT revision FROM results") == [{"revision": 4}]


@pytest.mark.slow
def test_a_broken_sender_is_waited_for_and_taken_as_it_is_if_it_stays_away(
    tmp_path: Path, pacs: Pacs
) -> None:
    comes_back, stays_away = series(tmp_path, "back"), series(tmp_path, "away", seed=1)
    with running(settings(tmp_path / "node", pacs, interrupted_s=4)) as node:
        assoc = associate(node.port)
        for image in [*comes_back[:2], *stays_away[:2]]:
            assoc.send_c_store(image)
        assoc.abort()
        started = time.monotonic()
        time.sleep(0.7)
        assert states(node) == {"receiving": 2}
        send(comes_back[2:], node.port)
        assert until(lambda: len(pacs.got) == 1)
        assert named_series(pacs.got[0]) == comes_back[0].SeriesInstanceUID
        assert time.monotonic() - started < 4
        assert until(lambda: len(pacs.got) == 2)
        assert time.monotonic() - started >= 4


def test_slices_that_come_late_have_the_series_contoured_again(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "one")
    with running(settings(tmp_path / "node", pacs)) as node:
        send(images[:3], node.port)
        assert until(lambda: len(pacs.got) == 1)
        send(images[3:], node.port)
        assert until(lambda: len(pacs.got) == 2)
        assert sql(node, "SELECT revision FROM results ORDER BY revision") == [
            {"revision": 3},
            {"revision": 4},
        ]


def test_strangers_are_rejected_and_listed(tmp_path: Path, pacs: Pacs) -> None:
    allowed = Sender(ae_title="SCANNER", addresses=("10.0.0.0/8",))
    with running(replace(settings(tmp_path / "node", pacs), allow=(allowed,))) as node:
        for calling, called in (("STRANGER", NODE), ("SCANNER", NODE)):
            assert associate(node.port, calling=calling, called=called).is_rejected
        listed = [str(row["reason"]) for row in sql(node, "SELECT reason FROM refusals ORDER BY sender")]
        assert "address" in listed[0]
        assert "not allowed" in listed[1]
    with running(settings(tmp_path / "node", pacs)) as node:
        assert associate(node.port, called="OTHER").is_rejected
        assert associate(node.port).is_established


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the library's thread may find its socket closed
def test_connections_that_ask_for_nothing_keep_no_sender_out(tmp_path: Path, pacs: Pacs) -> None:
    with running(settings(tmp_path, pacs, max_associations=2)) as node:
        for _ in range(12):
            socket.create_connection((LOOPBACK, node.port)).close()
        assert until(lambda: _is_taken(node.port), timeout_s=10)


def _is_taken(port: int) -> bool:
    assoc = associate(port)
    taken = bool(assoc.is_established)
    if taken:
        assoc.release()
    return taken


def test_malformed_objects_are_refused_and_listed_and_the_others_taken(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "one", slices=8)
    cut, bad_uid, no_place, other = images[4:8]
    cut.PixelData = cut.PixelData[:50]
    bad_uid["StudyInstanceUID"].validation_mode = config.IGNORE
    bad_uid["StudyInstanceUID"].value = "../../etc/passwd"
    del no_place.ImagePositionPatient
    other.SOPInstanceUID = images[0].SOPInstanceUID
    with running(settings(tmp_path / "node", pacs)) as node:
        found = send([*images[:4], cut, bad_uid, no_place, other], node.port)
        assert found[:4] == [0x0000] * 4
        assert found[4:] == [0xC000, 0xC000, 0xC000, 0x0111]
        rows = sql(node, "SELECT reason, remedy FROM refusals")
        assert len(rows) == 4
        assert all(row["remedy"] for row in rows)
        assert "Phantom" not in str(rows)
        assert until(lambda: len(pacs.got) == 1)


def test_localizers_and_dose_screens_are_taken_and_not_kept(tmp_path: Path, pacs: Pacs) -> None:
    image = series(tmp_path, "one")[0]
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with running(settings(tmp_path / "node", pacs)) as node:
        assert send([image], node.port) == [0x0000]
        assert [row["count"] for row in sql(node, "SELECT count FROM left_out")] == [1]
        assert not states(node)


def test_contours_are_sent_again_until_they_are_taken(tmp_path: Path) -> None:
    pacs = Pacs(refuse=2)
    with running(settings(tmp_path / "node", pacs)) as node:
        send(series(tmp_path, "one"), node.port)
        assert until(lambda: len(pacs.got) == 1)
        assert until(lambda: sql(node, "SELECT state FROM sendings") == [{"state": "sent"}])
        assert sql(node, "SELECT attempts FROM sendings") == [{"attempts": 3}]
    pacs.stop()


def test_a_destination_without_its_token_or_certificate_stops_no_other(tmp_path: Path, pacs: Pacs) -> None:
    gone = tmp_path / "gone.pem"
    no_token = Destination(url="https://localhost/dicom-web", token_file=gone)
    no_certificate = replace(pacs.destination, ae_title="OTHER", tls=Tls(certificate=gone, key=gone))
    chosen = replace(settings(tmp_path / "node", pacs), send=(no_token, no_certificate, pacs.destination))
    with running(chosen) as node:
        send(series(tmp_path, "one"), node.port)
        assert until(lambda: len(pacs.got) == 1)
        rows = sql(node, "SELECT message FROM sendings WHERE state = 'waiting' ORDER BY number")
        assert "token_file" in str(rows[0]["message"])
        assert "certificate" in str(rows[1]["message"])
        send(series(tmp_path, "two", seed=1), node.port)
        assert until(lambda: len(pacs.got) == 2)


def test_a_series_that_cannot_be_used_is_refused_with_its_reason_and_can_be_tried_again(
    tmp_path: Path, pacs: Pacs
) -> None:
    chosen = settings(tmp_path / "node", pacs)
    with running(chosen, Direct(build_refusing())) as node:
        send(series(tmp_path, "one"), node.port)
        assert until(lambda: states(node) == {"refused": 1})
        assert sql(node, "SELECT message FROM series") == [{"message": "4 slices are too few."}]
    with running(chosen) as node:
        assert not pacs.got
        assert node.queue.retry(1, now=time.time())
        assert until(lambda: len(pacs.got) == 1)


@pytest.mark.slow
def test_a_contouring_process_that_dies_leaves_the_node_alive(tmp_path: Path, pacs: Pacs) -> None:
    chosen = replace(settings(tmp_path / "node", pacs), attempts=1)
    with running(chosen, ContourProcess(build_dying)) as node:
        images = series(tmp_path, "one")
        send(images, node.port)
        assert until(lambda: states(node) == {"refused": 1})
        assert "memory" in str(sql(node, "SELECT message FROM series"))
        assert send(series(tmp_path, "two", seed=1), node.port) == [0x0000] * 4


def test_a_model_that_cannot_be_loaded_is_the_reason_that_is_given(tmp_path: Path) -> None:
    contouring = ContourProcess(build_without_model)
    for _ in range(2):
        outcome = contouring.contour(SeriesFiles(images=()), tmp_path / "out.dcm", threading.Event())
        assert outcome == Outcome(message="model.consilium: the file must exist; it does not.")
    contouring.stop()


@pytest.mark.slow
def test_a_contouring_process_contours_one_series_after_the_other_and_ends_when_asked(tmp_path: Path) -> None:
    series(tmp_path, "one")
    files = SeriesFiles(images=tuple(sorted((tmp_path / "one").iterdir())))
    contouring, stop = ContourProcess(build_fake), threading.Event()
    for out in (tmp_path / "first.dcm", tmp_path / "second.dcm"):
        assert contouring.contour(files, out, stop) == Outcome()
        assert named_series(dcmread(out)) == dcmread(files.images[0]).SeriesInstanceUID
    contouring.stop()
    stop.set()
    assert contouring.contour(files, tmp_path / "third.dcm", stop) is None
    contouring.stop()


def test_two_nodes_cannot_share_a_folder(tmp_path: Path, pacs: Pacs) -> None:
    chosen = settings(tmp_path / "node", pacs)
    with running(chosen), pytest.raises(ConfigurationError, match="another does"):
        Node(chosen, Direct())


def test_no_identifier_is_in_file_names_or_on_the_status_page(tmp_path: Path, pacs: Pacs) -> None:
    images = series(tmp_path, "Canary")
    noted: list[str] = []
    node = Node(settings(tmp_path / "node", pacs), Direct(), note=noted.append)
    node.start()
    broken = dcmread(tmp_path / "Canary" / "ct_0001.dcm")
    broken.SOPInstanceUID = generate_uid()
    del broken.PixelData
    send([*images, broken], node.port)
    assert until(lambda: bool(pacs.got))
    shown = str(read_status(node.queue)) + "\n".join(noted)
    names = "\n".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "node").rglob("*"))
    node.stop()
    identifiers = [images[0][k].value for k in ("PatientName", "PatientID", "StudyInstanceUID")]
    identifiers += [images[0].SeriesInstanceUID, images[0].SOPInstanceUID, "19500101", "Canary"]
    for identifier in map(str, identifiers):
        assert identifier not in shown
        assert identifier not in names
    modes = {p.stat().st_mode & 0o077 for p in (tmp_path / "node" / "objects").rglob("*")}
    assert modes == {0}
    assert (tmp_path / "node").stat().st_mode & 0o077 == 0


def test_content_is_deleted_after_its_time_and_a_resent_series_is_not_contoured_again(
    tmp_path: Path, pacs: Pacs
) -> None:
    images = series(tmp_path, "one")
    chosen = replace(settings(tmp_path / "node", pacs), keep_days=0)
    with running(chosen) as node:
        send(images, node.port)
        assert until(lambda: sql(node, "SELECT state FROM sendings") == [{"state": "sent"}])
    with running(chosen) as node:
        assert until(lambda: not list((tmp_path / "node" / "objects").rglob("*.dcm")))
        assert send(images, node.port) == [0x0000] * 4
        time.sleep(0.8)
        assert len(pacs.got) == 1


def test_a_structure_set_whose_images_never_come_is_deleted_after_its_time(
    tmp_path: Path, pacs: Pacs
) -> None:
    images = series(tmp_path, "one")
    stored = tmp_path / "node" / "objects"
    now = [1000.0]
    node = Node(settings(tmp_path / "node", pacs), Direct(), clock=lambda: now[0])
    node.start()
    assert send([structure_set(images)], node.port) == [0x0000]
    assert len(list(stored.rglob("*.dcm"))) == 1
    node.stop()
    for days, left in ((6, 1), (8, 0)):
        now[0] = 1000.0 + days * DAY_S
        node = Node(settings(tmp_path / "node", pacs), Direct(), clock=lambda: now[0])
        node.start()
        assert until(lambda left=left: len(list(stored.rglob("*.dcm"))) == left)
        node.stop()
        assert len(list(stored.rglob("*.dcm"))) == left
    with running(settings(tmp_path / "node", pacs)) as node:
        assert read_status(node.queue)["series"][0]["structure_sets"] == 1
        assert "no image" in read_status(node.queue)["series"][0]["message"]
        send(images, node.port)
        assert until(lambda: len(pacs.got) == 1)


def test_what_waits_for_a_destination_that_is_gone_is_given_up_and_deleted_after_its_time(
    tmp_path: Path, pacs: Pacs
) -> None:
    gone = replace(pacs.destination, ae_title="GONE")
    chosen = replace(settings(tmp_path / "node", pacs), send=(gone,))
    with running(chosen) as node:
        send(series(tmp_path, "one"), node.port)
        assert until(lambda: bool(sql(node, "SELECT 1 AS n FROM sendings WHERE attempts > 0")))
    with running(settings(tmp_path / "node", pacs)) as node:
        assert until(lambda: sql(node, "SELECT state FROM sendings") == [{"state": "given up"}])
        assert "GONE" in str(sql(node, "SELECT message FROM sendings"))
        assert list((tmp_path / "node" / "objects").rglob("*.dcm"))
    with running(replace(settings(tmp_path / "node", pacs), keep_days=0)) as node:
        assert until(lambda: not list((tmp_path / "node" / "objects").rglob("*.dcm")))
        assert not node.queue.retry(1, now=time.time())


def test_a_file_without_a_row_is_cleared_at_the_start_and_the_object_taken_again(
    tmp_path: Path, pacs: Pacs
) -> None:
    images = series(tmp_path, "one")
    content = (tmp_path / "one" / "ct_0001.dcm").read_bytes()
    orphan = tmp_path / "node" / "objects" / "ab" / f"{content_digest(content)}.dcm"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(content)
    with running(settings(tmp_path / "node", pacs)) as node:
        assert not orphan.exists()
        assert send(images, node.port) == [0x0000] * 4


def certificate(folder: Path, name: str) -> Tls:
    """A self-signed certificate for loopback, which is its own authority."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls(certificate=cert, key=key, authorities=cert)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/usr/bin/openssl", os.X_OK), reason="openssl is not installed")
def test_tls_on_both_sides_lets_in_only_who_has_a_certificate(tmp_path: Path) -> None:
    ours, theirs = certificate(tmp_path, "node"), certificate(tmp_path, "pacs")
    pacs = Pacs(ssl_context=replace(theirs, authorities=ours.certificate).server_context())
    chosen = settings(tmp_path / "node", pacs, tls=replace(ours, authorities=theirs.certificate))
    to_pacs = replace(pacs.destination, tls=replace(ours, authorities=theirs.certificate))
    with running(replace(chosen, send=(to_pacs,))) as node:
        client = replace(theirs, authorities=ours.certificate).client_context()
        assert send(series(tmp_path, "one"), node.port, tls_args=(client, LOOPBACK)) == [0x0000] * 4
        assert until(lambda: bool(pacs.got))
        assert not associate(node.port).is_established
        bare = ssl.create_default_context(cafile=str(ours.certificate))
        assert not associate(node.port, tls_args=(bare, LOOPBACK)).is_established
    pacs.stop()
