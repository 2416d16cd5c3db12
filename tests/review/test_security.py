"""Each guard of the page, as a test that fails when the guard is taken away."""

import errno
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from consilium.cases.dataset import Dataset, create_dataset
from consilium.review import case_routes, security
from consilium.review.app import build_app
from consilium.review.attention import Look, Reason
from consilium.review.places import Kind, Place, place_of
from tests.cases.drafts import draft

PORT = 8123
TOKEN = "a-token-of-the-length-that-is-used-in-fact-0"
ORIGIN = {"Origin": f"http://127.0.0.1:{PORT}"}
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft())
    return dataset


@pytest.fixture
def stranger(dataset: Dataset) -> Iterator[TestClient]:
    app = build_app([place_of(dataset)], token=TOKEN, port=PORT, export=lambda *_: Path("out.dcm"))
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        yield client


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    return stranger


def decision(**changes: object) -> dict[str, object]:
    asked = {
        "request_id": "r1",
        "structure": "Bladder",
        "reader": "clinical",
        "verdict": "accepted",
        "person": "Dr Who",
        "seen": 0,
    }
    return asked | changes


def decide(client: TestClient, case_id: str, headers: dict[str, str], **changes: object) -> httpx.Response:
    return client.post(f"/place/0/case/{case_id}/decide", json=decision(**changes), headers=headers)


def test_without_the_token_nothing_is_shown(stranger: TestClient, dataset: Dataset) -> None:
    for path in ("/", f"/place/0/case/{dataset.case_ids[0]}", "/static/main.js"):
        assert stranger.get(path).status_code == 403, path


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], f"{TOKEN}x", "é"])
def test_a_stale_token_is_refused(stranger: TestClient, token: str) -> None:
    assert stranger.get("/", params={"token": token}).status_code == 403
    stranger.cookies.set(security.cookie_of(PORT), token.encode("ascii", "ignore").decode())
    assert stranger.get("/").status_code == 403


def test_the_token_leaves_the_address_and_the_cookie_is_closed_to_scripts(stranger: TestClient) -> None:
    answer = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_two_reviews_in_one_browser_do_not_lock_each_other_out(client: TestClient, dataset: Dataset) -> None:
    app = build_app([place_of(dataset)], token="another", port=PORT + 1, export=lambda *_: Path("out.dcm"))
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT + 1}") as other:
        other.cookies = client.cookies  # one browser: its cookies go to every port
        assert other.get("/?token=another").status_code == 200
        client.cookies = other.cookies
    assert decide(client, dataset.case_ids[0], ORIGIN).status_code == 200


@pytest.mark.parametrize("strange", ['kept={"a": 1}', "theme=dark mode", "a[b]=1"])
def test_cookies_of_other_programs_on_this_machine_do_not_hide_ours(client: TestClient, strange: str) -> None:
    ours = f"{security.cookie_of(PORT)}={TOKEN}"
    client.cookies.clear()
    assert client.get("/place/0/", headers={"Cookie": f"{strange}; {ours}"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8123", "127.0.0.1:9", "127.0.0.1"])
def test_another_name_that_resolves_here_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_a_post_from_another_site_is_refused(
    client: TestClient, dataset: Dataset, headers: dict[str, str]
) -> None:
    case_id = dataset.case_ids[0]
    assert decide(client, case_id, headers).status_code == 403
    assert client.get(f"/place/0/case/{case_id}/history").json() == []
    assert decide(client, case_id, ORIGIN).status_code == 200


def test_every_answer_forbids_scripts_from_elsewhere(client: TestClient, dataset: Dataset) -> None:
    paths = (
        "/",
        "/place/0/",
        f"/place/0/case/{dataset.case_ids[0]}",
        "/place/0/decisions",
        "/static/main.js",
        "/x",
    )
    for path in paths:
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_markup_in_a_roi_name_and_in_a_reason_stays_text(tmp_path: Path) -> None:
    source = draft()
    source = replace(source, annotations=(replace(source.annotations[0], structure=MARKUP),))
    dataset = create_dataset(tmp_path / "d")
    case, _ = dataset.add(source)
    app = build_app([place_of(dataset)], token=TOKEN, port=PORT, export=lambda *_: Path("out.dcm"))
    attention = app.state.desks[0].attention
    attention._thread.join()
    reason = Reason(structure=MARKUP, message=MARKUP, score=1.0)
    attention._looks[case.case_id] = Look(case=case, reasons=(reason,))
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        client.get(f"/?token={TOKEN}")
        changes = {"structure": MARKUP, "reason": MARKUP, "person": MARKUP}
        assert decide(client, case.case_id, ORIGIN, **changes).status_code == 200
        for path in ("/place/0/", f"/place/0/case/{case.case_id}", "/place/0/decisions"):
            page = client.get(path).text
            assert "<img src=x" not in page, path
            assert "&lt;img src=x" in page, path


def test_a_case_of_another_dataset_does_not_exist(client: TestClient, tmp_path: Path) -> None:
    other, _ = create_dataset(tmp_path / "other").add(draft(2))
    for path in (
        "",
        "/thumbnail.png",
        "/slice/axial/0",
        "/history",
        "/mask?structure=Bladder&reader=clinical",
    ):
        assert client.get(f"/place/0/case/{other.case_id}{path}").status_code == 404, path
    assert decide(client, other.case_id, ORIGIN).status_code == 404


def correct(client: TestClient, case_id: str, bits: bytes, **changes: object) -> httpx.Response:
    head = json.dumps(decision(**({"verdict": "corrected", "box": None} | changes))).encode()
    body = len(head).to_bytes(4, "little") + head + bits
    return client.post(f"/place/0/case/{case_id}/correct", headers=ORIGIN, content=body)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("disk is full")]
)
def test_a_full_disk_is_said_and_nothing_is_recorded(
    client: TestClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(case_routes, "add_correction", full)
    answer = correct(client, dataset.case_ids[0], b"")
    assert answer.status_code == 500
    assert "free some space" in answer.text.lower()
    assert str(dataset.folder) not in answer.text
    assert client.get(f"/place/0/case/{dataset.case_ids[0]}/history").json() == []


def test_a_page_that_was_deleted_does_not_take_the_others_with_it(dataset: Dataset, tmp_path: Path) -> None:
    gone = Place(kind=Kind.PAGE, folder=tmp_path / "gone.html", name="gone")
    places = [place_of(dataset), gone]
    app = build_app(places, token=TOKEN, port=PORT, export=lambda *_: Path("out.dcm"))
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        assert client.get(f"/?token={TOKEN}").status_code == 200
        assert client.get("/place/1/page").status_code == 500


def test_nothing_is_decided_about_a_contour_that_is_not_there(client: TestClient, dataset: Dataset) -> None:
    case_id = dataset.case_ids[0]
    for changes in ({"structure": "Liver"}, {"reader": "reader-9"}):
        assert decide(client, case_id, ORIGIN, **changes).status_code == 404, changes
    assert correct(client, case_id, b"", structure="Liver").status_code == 404
    assert client.get(f"/place/0/case/{case_id}/history").json() == []


def test_what_was_accepted_is_not_exported_once_another_contour_stands_in_its_place(
    client: TestClient, dataset: Dataset
) -> None:
    case_id = dataset.case_ids[0]
    page = client.get(f"/place/0/case/{case_id}").text
    seen = json.loads(re.findall(r'id="record">(.*?)</script>', page)[0])
    content = seen["sources"][0]["content"]
    assert decide(client, case_id, ORIGIN, content=content).status_code == 200
    export = f"/place/0/case/{case_id}/export"
    assert client.post(export, headers=ORIGIN).status_code == 200
    moved = replace(draft().annotations[0], mask=draft().annotations[1].mask)
    fresh = replace(draft(), annotations=(moved,), source_sha256={"series": "f" * 64})
    dataset.add(fresh, replace=True)
    answer = client.post(export, headers=ORIGIN)
    assert answer.status_code == 400
    assert "decide again" in answer.text
    stale = decide(client, case_id, ORIGIN, content=content, request_id="r2", seen=1)
    assert stale.status_code == 409, "the page still shows the contour that was replaced"
    assert decide(client, case_id, ORIGIN, request_id="r3", seen=1).status_code == 200
    assert client.post(export, headers=ORIGIN).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": "x"},
        {"seconds_spent": "x"},
        {"seconds_spent": -1},
        {"contour_changed_mm": 1e999},
        {"person": ""},
    ],
)
def test_a_decision_with_a_field_of_a_wrong_kind_is_refused(
    client: TestClient, dataset: Dataset, changes: dict[str, object]
) -> None:
    body = json.dumps(decision(**changes))
    answer = client.post(f"/place/0/case/{dataset.case_ids[0]}/decide", headers=ORIGIN, content=body)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/place/0/case/../../private/key",
        "/place/0/case/%2e%2e/slice/axial/0",
        "/static/..%2fapp.py",
        "/static/store.py",
    ],
)
def test_no_path_leads_to_another_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_an_upload_that_declares_10_gb_is_refused_unread(client: TestClient, dataset: Dataset) -> None:
    answer = client.post(
        f"/place/0/case/{dataset.case_ids[0]}/correct",
        headers=ORIGIN | {"Content-Length": str(10 * 2**30)},
        content=b"x",
    )
    assert answer.status_code == 413


def test_an_upload_that_hides_its_size_is_stopped_at_the_limit(client: TestClient, dataset: Dataset) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 2**20
            yield bytes(2**20)

    url = f"/place/0/case/{dataset.case_ids[0]}/correct"
    assert client.post(url, headers=ORIGIN, content=endless()).status_code == 413


def test_a_mask_that_leaves_the_image_or_lies_about_its_size_is_refused(
    client: TestClient, dataset: Dataset
) -> None:
    case_id = dataset.case_ids[0]
    wrong = (
        ([0, 0, 0, 99, 99, 99], b"x", "must lie in the image"),
        ([0, 0, 0, 2, 2, 2], b"xx", "must come as 1 bytes"),
        ([3, 3, 3, 1, 1, 1], b"", "box"),
        ([0, 0, 0, "x", 2, 2], b"x", "six integers"),
    )
    for box, bits, said in wrong:
        answer = correct(client, case_id, bits, box=box)
        assert answer.status_code == 400, answer.text
        assert said in answer.text
    assert dataset.case(dataset.case_ids[0]).readers("Bladder") == ("clinical", "reader-2")
