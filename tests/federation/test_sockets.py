"""The Unix socket between processes: names are proved, nothing is lost; and faults on the way."""

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from consilium.errors import FederationError
from consilium.federation.desk import Desk, Notice
from consilium.federation.frames import CHUNK_BYTES, decode_frame, encode_frame
from consilium.federation.journal import Journal
from consilium.federation.local import LocalTask, SiteResult
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import FederationSettings
from consilium.federation.simulation import carry_in_memory, simulate
from consilium.federation.site import Site, run_site
from consilium.federation.sockets import SocketCarrier, serve_socket
from consilium.federation.store import MemoryStore
from tests.federation.toys import build_local_update, build_model, build_settings_for

BIG = {"w": np.arange(1_000_000, dtype=np.float32)}


def desk_in(folder: Path, settings: FederationSettings) -> tuple[Desk, Journal]:
    journal = Journal(folder / "journal")
    desk = Desk(settings, journal.audit, clock=time.monotonic, spool=folder / "spool", report=journal.report)
    return desk, journal


def ask(carrier: SocketCarrier, site: str) -> str:
    header = {"ask": "hello", "site": site, "instance": "instance"}
    return str(decode_frame(carrier(encode_frame(header)))[0]["say"])


def test_a_site_is_who_its_token_says(tmp_path: Path) -> None:
    settings = build_settings_for(2)
    desk, _ = desk_in(tmp_path, settings)
    with serve_socket(desk, tmp_path / "s", {"site-0": b"zero", "site-1": b"one"}):
        honest = SocketCarrier(tmp_path / "s", "site-0", b"zero")
        assert ask(honest, "site-0") == "heard"
        assert ask(honest, "site-1") == "refused"
        honest.close()
        with pytest.raises(FederationError, match="does not accept its token"):
            ask(SocketCarrier(tmp_path / "s", "site-1", b"zero"), "site-1")
        with pytest.raises(FederationError, match="does not accept its token"):
            ask(SocketCarrier(tmp_path / "s", "stranger", b""), "stranger")
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_nobody_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        ask(SocketCarrier(tmp_path / "nothing", "site-0", b"zero"), "site-0")


def test_a_stranger_that_announces_gigabytes_is_hung_up(tmp_path: Path) -> None:
    desk, _ = desk_in(tmp_path, build_settings_for(1))
    with serve_socket(desk, tmp_path / "s", {"site-0": b"zero"}), socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / "s"))
        stranger.settimeout(5)
        stranger.recv(100)
        stranger.sendall((2**32 - 1).to_bytes(4, "little"))
        received = [stranger.recv(100)]
        while received[-1]:
            received.append(stranger.recv(100))
        assert sum(map(len, received)) < 100, "more than the rest of the greeting came"


def add_one(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
    return SiteResult(parameters={n: a + np.float32(1) for n, a in parameters.items()}, weight=10)


def test_a_transfer_that_is_reset_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = build_settings_for(1, rounds=2, clipping_norm=1e5)
    desk, journal = desk_in(tmp_path, settings)
    rng, moved = np.random.default_rng(5), [0]

    def carrier(frame: bytes) -> bytes:
        if rng.uniform() < 0.05:
            raise ConnectionResetError
        answer = desk.answer("site-0", frame)
        if rng.uniform() < 0.05:
            raise ConnectionResetError
        moved[0] += len(frame) + len(answer)
        return answer

    site = Site("site-0", settings, add_one, MemoryStore(), carrier)
    thread = threading.Thread(target=run_site, args=(site,), kwargs={"poll_s": 0.001, "max_wait_s": 0.002})
    thread.start()
    final = run_rounds(settings, BIG, desk=desk, journal=journal, clock=time.monotonic)
    thread.join(20)
    assert np.array_equal(final["w"], BIG["w"] + 2)
    # Five transfers: two models out, two updates in, the final model. A lost answer costs its own piece only.
    assert moved[0] < 5 * BIG["w"].nbytes * 1.5 + 10 * CHUNK_BYTES


def test_the_bytes_of_a_round_are_the_parameters_own(tmp_path: Path) -> None:
    for half in (False, True):
        settings = build_settings_for(1, rounds=1, clipping_norm=1e7, half_precision=half)
        model = {"w": np.linspace(0, 1, 3_000_000, dtype=np.float32)}
        desk, journal = desk_in(tmp_path / str(half), settings)
        sent, received = [0], [0]
        carry = carry_in_memory(desk, "site-0")

        def carrier(frame: bytes, carry=carry, sent=sent, received=received) -> bytes:  # type: ignore[no-untyped-def]
            answer: bytes = carry(frame)
            sent[0] += len(frame)
            received[0] += len(answer)
            return answer

        site = Site("site-0", settings, add_one, MemoryStore(), carrier)
        opened = threading.Event()
        thread = threading.Thread(target=lambda o=opened, s=site: (o.wait(10), s.step()))
        thread.start()
        run_rounds(
            settings, model, desk=desk, journal=journal, clock=time.monotonic,
            watch=lambda event, o=opened: o.set() if event.kind == "opened" else None,
        )  # fmt: skip
        thread.join(10)
        own = model["w"].nbytes / (2 if half else 1)
        assert sent[0] <= 1.01 * own
        assert received[0] <= 1.01 * own


def test_a_loud_site_cannot_fill_the_log(tmp_path: Path) -> None:
    desk, journal = desk_in(tmp_path, build_settings_for(1))
    desk.publish(
        Notice(
            round_number=0,
            rounds=1,
            model=tmp_path / "model",
            model_digest="0" * 64,
            job_digest="0" * 64,
            site_options={},
            last_counted={},
            max_update_bytes=1000,
        )
    )
    told = set()
    for number in range(100):
        for asked in (
            {"ask": "offer", "round": 0, "size": 10**9 + number, "digest": "0" * 64},
            {"ask": "offer", "round": number + 1, "size": 100, "digest": "0" * 64},
            {"ask": "task", "audit": [number, "0" * 64]},
        ):
            frame = encode_frame({"site": "site-0", "instance": "instance", **asked})
            answer = decode_frame(desk.answer("site-0", frame))[0]
            assert answer["say"] == "refused"
            told.add(answer["why"])
    assert len(told) > 200, "the site is told its own numbers"
    lines = (journal.folder / "audit.jsonl").read_text().splitlines()
    assert sum('"event":"refused"' in line for line in lines) == 3


def test_a_desk_answers_any_bytes_without_raising(tmp_path: Path) -> None:
    desk, _ = desk_in(tmp_path, build_settings_for(1))
    rng = np.random.default_rng(3)
    base = {"ask": "task", "site": "site-0", "instance": "instance", "audit": [-1, "0" * 64]}
    odd = [None, -5, 1e300, "x", [], {}, [1e999], True, "../../x", 2**70]
    for key in (*base, "offset", "round", "size", "digest", "job"):
        for value in odd:
            for kind in ("task", "offer", "put", "model", "hello"):
                try:
                    frame = encode_frame(
                        {
                            **base,
                            "ask": kind,
                            "round": 0,
                            "size": 9,
                            "digest": "0" * 64,
                            "offset": 0,
                            key: value,
                        }
                    )
                except ValueError:
                    continue
                assert "say" in decode_frame(desk.answer("site-0", frame))[0]
    for _ in range(200):
        assert "say" in decode_frame(desk.answer("site-0", rng.bytes(int(rng.integers(0, 60)))))[0]
    assert list((tmp_path / "spool").iterdir()) == []


def test_canaries_at_a_site_appear_in_no_frame_and_on_no_disk_of_the_coordinator(tmp_path: Path) -> None:
    canaries = (b"CANARY^JOHN", b"CANARY-0815", b"1.2.826.0.1.3680043.8.498.99", b"/archive/CANARY")
    settings = build_settings_for(2, rounds=2)
    desk, journal = desk_in(tmp_path, settings)
    frames: list[bytes] = []

    def build(name: str) -> Site:
        def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
            if round_number == 1 and name == "site-1":
                raise ValueError(canaries)
            return build_local_update(name)(parameters, round_number=round_number, task=task)

        def carrier(frame: bytes) -> bytes:
            answer = desk.answer(name, frame)
            frames.extend((frame, answer))
            return answer

        return Site(name, settings, train, MemoryStore(), carrier)

    sites = [build(s.name) for s in settings.sites]

    def step_all() -> None:
        for site in sites:
            try:
                site.step()
            except ValueError:
                continue

    def watch(event: object) -> None:
        if getattr(event, "kind", "") == "opened":
            step_all()

    brief = build_settings_for(2, rounds=2)
    assert brief.digest == settings.digest
    ticks = iter(np.arange(0.0, 1e6, 200.0))
    run_rounds(
        settings, build_model(), desk=desk, journal=journal, clock=lambda: float(next(ticks)), watch=watch
    )
    traffic = b"".join(frames) + b"".join(p.read_bytes() for p in (tmp_path / "journal").iterdir())
    assert len(traffic) > 5000
    assert not [word for word in canaries if word in traffic]


def test_one_run_over_a_socket_equals_the_simulated_one(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=3)
    desk, journal = desk_in(tmp_path, settings)
    names = [site.name for site in settings.sites]
    with serve_socket(desk, tmp_path / "s", {name: name.encode() for name in names}):
        carriers = [SocketCarrier(tmp_path / "s", name, name.encode()) for name in names]
        sites = [
            Site(name, settings, build_local_update(name), MemoryStore(), carrier)
            for name, carrier in zip(names, carriers, strict=True)
        ]
        threads = [threading.Thread(target=run_site, args=(site,), kwargs={"poll_s": 0.01}) for site in sites]
        for thread in threads:
            thread.start()
        final = run_rounds(settings, build_model(), desk=desk, journal=journal, clock=time.monotonic)
        for thread in threads:
            thread.join(10)
        for carrier in carriers:
            carrier.close()
    updates = {name: build_local_update(name) for name in names}
    assert compute_digest(final) == compute_digest(
        simulate(settings, build_model(), updates, tmp_path / "simulated")
    )
