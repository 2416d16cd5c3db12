"""A hospital's side: ask what there is to do, train at home, send the result, remember just enough to be
killed anywhere.
"""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.errors import DataError, FederationError
from consilium.federation.audit import GENESIS, verify_extension
from consilium.federation.combine import Group
from consilium.federation.frames import Bytes, PieceSize, decode_frame, encode_frame
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.messages import CONTROL, PARAMETERS, UpdateHeader, check_metric_names, encode_update
from consilium.federation.parameters import Parameters, compute_digest, split_local
from consilium.federation.settings import FederationSettings
from consilium.federation.store import SiteStore
from consilium.federation.strategies import build_strategy
from consilium.federation.tensors import Tensors, encode_tensors
from consilium.types import Array

Carrier = Callable[[bytes], Bytes]
"""Carries one frame to the coordinator's desk and its answer back; raises OSError when it cannot."""

LOCAL, MEMORY = "local/", "memory/"


@dataclass(frozen=True)
class Step:
    """What one look at the coordinator led to.

    Args:
        kind: ``trained`` (and sent), ``waiting``, ``refused`` or ``finished``.
        detail: For people.
        round_number: Of what was trained; -1 otherwise.
    """

    kind: str
    detail: str
    round_number: int = -1


class Site:
    """One enrolled site.

    Args:
        name: As enrolled.
        settings: The federation the site approved; anything else is not trained for.
        local_update: The hospital's own training.
        store: What it remembers.
        carrier: The way to the coordinator.
    """

    def __init__(
        self,
        name: str,
        settings: FederationSettings,
        local_update: LocalUpdate,
        store: SiteStore,
        carrier: Carrier,
    ) -> None:
        self.name = name
        self.final: Parameters | None = None
        self._settings = settings
        self._strategy = build_strategy(settings.strategy)
        self._local_update = local_update
        self._store = store
        self._carrier = carrier
        self._refused = ("", "")
        self._partial = bytearray()
        self._partial_digest = ""
        self._pieces = PieceSize()
        self._instance = self._load_instance()

    def step(self) -> Step:
        """Look once; train and send if there is a round to train for.

        Raises:
            OSError: If the coordinator cannot be reached; call again later.
            FederationError: If the coordinator's log is not the one this site has followed.
        """
        seen = self._load_head()
        answer, _ = self._ask("task", audit=[seen["round"], seen["head"]])
        if answer["say"] == "refused":
            return Step("refused", str(answer["why"]))
        if answer["say"] == "stale":
            return Step("waiting", "the coordinator goes on to the next round")
        if answer.get("job") != self._settings.digest:
            return Step("refused", "the coordinator runs other settings than this site approved")
        self._follow(seen, answer)
        if answer["say"] == "finished":
            tensors = self._fetch_model(answer)
            if tensors is not None:
                self.final = self._with_local(dict(Group(tensors, PARAMETERS)), int(answer["last_counted"]))
                # The coordinator stays until it has heard this: the last piece may be lost on its way.
                with contextlib.suppress(OSError):
                    self._ask("hello", final=answer["model"])
                return Step("finished", f"{answer['rounds']} rounds are done")
            return Step("waiting", "the final model is on its way")
        if answer["say"] != "train":
            return Step("waiting", str(answer.get("why", "")))
        return self._take_part(answer)

    def say_hello(self) -> None:
        """Tell the coordinator that this site is alive, while it trains."""
        self._ask("hello")

    # --- one round ------------------------------------------------------------------------------------------

    def _take_part(self, answer: Mapping[str, Any]) -> Step:
        number, base_digest = int(answer["round"]), str(answer["model"])
        verdict = answer.get("verdict")
        if verdict is not None and verdict[:2] == [number, "refused"]:
            self._refused = (f"{number} {base_digest}", str(verdict[2]))
        if self._refused[0] == f"{number} {base_digest}":
            return Step("waiting", f"round {number} refused this site's update: {self._refused[1]}")
        name = f"update-{number:06d}-{base_digest[:16]}"
        update = self._load_update(name)
        if update is None:
            tensors = self._fetch_model(answer)
            if tensors is None:
                return Step("waiting", f"the model of round {number} is on its way")
            content = memoryview(self._train(tensors, answer))
            update = content, hashlib.sha256(content).digest()
            # Not synced: a power cut may tear it; its digest tells, and training repeats the same bits.
            self._store.write(name, update[1], content, durable=False)
            self._forget_before(int(answer["last_counted"]), name)
        return self._send(*update, number)

    def _train(self, tensors: Tensors, answer: Mapping[str, Any]) -> bytes:
        number, last = int(answer["round"]), int(answer["last_counted"])
        received = {name: self._widen(array) for name, array in Group(tensors, PARAMETERS).items()}
        control = {name: self._widen(array) for name, array in Group(tensors, CONTROL).items()}
        kept_control = self._load_state(last, CONTROL)
        own_control = {name: fit_rows(kept_control.get(name), array) for name, array in control.items()}
        options = self._strategy.site_options()
        task = LocalTask(
            round_number=number,
            seed=derive_seed(self._settings.seed, self.name, number),
            structures=self._settings.heads.structures,
            proximal_mu=float(options.get("proximal_mu", 0.0)),
            correction={name: control[name] - own_control[name] for name in control},
            wants_control=bool(control),
            memory=self._load_state(last, MEMORY),
        )
        start = self._with_local({name: np.array(array) for name, array in received.items()}, last)
        result = self._local_update(start, round_number=number, task=task)
        check_result(self.name, self._settings, result, received, control)
        travelling, local = split_local(result.parameters, self._settings.local_names)
        changes = {name: result.control_variates[name] - own_control[name] for name in control}
        state = {LOCAL + n: a for n, a in local.items()}
        state |= {CONTROL + n: a for n, a in result.control_variates.items() if control}
        state |= {MEMORY + n: a for n, a in result.memory.items()}
        if state:
            self._store.write(f"state-{number:06d}", encode_tensors(state))
        return self._encode(result, travelling, changes, answer, received)

    def _encode(
        self,
        result: SiteResult,
        travelling: Parameters,
        changes: Parameters,
        answer: Mapping[str, Any],
        received: Parameters,
    ) -> bytes:
        half = self._settings.half_precision
        if half:
            travelling = {name: (travelling[name] - received[name]).astype(np.float16) for name in travelling}
            changes = {name: array.astype(np.float16) for name, array in changes.items()}
        header = UpdateHeader(
            site=self.name,
            round_number=int(answer["round"]),
            job_digest=self._settings.digest,
            base_digest=str(answer["model"]),
            weight=result.weight,
            cases_by_structure=dict(sorted(result.cases_by_structure.items())),
            metrics={name: float(result.metrics[name]) for name in sorted(result.metrics)},
            content="change" if half else "parameters",
        )
        return encode_update(header, travelling, changes)

    def _send(self, content: memoryview, sha256: bytes, number: int) -> Step:
        digest = sha256.hex()
        answer, _ = self._ask("offer", round=number, size=len(content), digest=digest)
        while answer["say"] == "send":
            offset = int(answer["offset"])
            piece = content[offset : offset + self._pieces.bytes]
            answer, _ = self._ask("put", body=piece, round=number, offset=offset, digest=digest)
        if answer["say"] == "have":
            return Step("trained", f"round {number} is trained and sent", number)
        if answer["say"] == "refused":
            return Step("waiting", f"round {number}: {answer['why']}")
        return Step("waiting", f"round {number} is trained; the coordinator is busy")

    def _fetch_model(self, answer: Mapping[str, Any]) -> Tensors | None:
        """The model the answer names; None if the coordinator meanwhile went on. A broken transfer is
        continued.
        """
        digest, size = str(answer["model"]), int(answer["size"])
        if self._partial_digest != digest:
            self._partial, self._partial_digest = bytearray(), digest
        while len(self._partial) < size:
            piece, body = self._ask(
                "model", digest=digest, offset=len(self._partial), length=self._pieces.bytes
            )
            if piece["say"] != "piece" or not body:
                self._partial_digest = ""
                return None
            self._partial += body
        content, self._partial, self._partial_digest = self._partial, bytearray(), ""
        tensors = Tensors(memoryview(content).toreadonly())
        if compute_digest(tensors) != digest:
            raise FederationError(
                "model: its content must have the digest that was announced; it has not. Ask again."
            )
        return tensors

    # --- what is remembered ---------------------------------------------------------------------------------

    def _with_local(self, travelling: Parameters, last_counted: int) -> Parameters:
        return travelling | self._load_state(last_counted, LOCAL)

    def _load_state(self, last_counted: int, prefix: str) -> Parameters:
        """What the site kept after the last round its update counted in; empty before the first."""
        content = self._store.read(f"state-{last_counted:06d}") if last_counted >= 0 else None
        return {} if content is None else {n: np.array(a) for n, a in Group(Tensors(content), prefix).items()}

    def _load_update(self, name: str) -> tuple[memoryview, bytes] | None:
        """An update that was trained before a kill, and its digest."""
        stored = self._store.read(name)
        if stored is None or hashlib.sha256(memoryview(stored)[32:]).digest() != stored[:32]:
            return None
        return memoryview(stored)[32:], stored[:32]

    def _forget_before(self, last_counted: int, current: str) -> None:
        for name in self._store.list_names():
            kind, _, rest = name.partition("-")
            old_state = kind == "state" and int(rest) < last_counted
            if old_state or (kind == "update" and name != current):
                self._store.remove(name)

    def _widen(self, array: Array) -> Array:
        return array.astype(np.float32) if self._settings.half_precision else array

    def _load_instance(self) -> str:
        content = self._store.read("instance")
        if content is None:
            content = uuid.uuid4().hex.encode()
            self._store.write("instance", content)
        return content.decode()

    def _load_head(self) -> dict[str, Any]:
        content = self._store.read("head.json")
        return {"round": -1, "head": GENESIS} if content is None else dict(json.loads(content))

    def _follow(self, seen: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """See that the coordinator's log continues from the head kept here, and keep the new head."""
        steps = [(int(number), str(events), str(model)) for number, events, model in answer["steps"]]
        expected = list(range(int(seen["round"]) + 1, int(seen["round"]) + 1 + len(steps)))
        head = verify_extension(str(seen["head"]), steps)
        if [number for number, _, _ in steps] != expected or head != answer["head"]:
            raise FederationError(
                f"audit: the coordinator's log must continue from round {seen['round']}, whose head this "
                "site keeps; it "
                "does not. It was changed or restored from an old copy: nothing is trained. Talk to the "
                "coordinator."
            )
        if steps:
            self._store.write("head.json", json.dumps({"round": steps[-1][0], "head": head}).encode())

    def _ask(
        self, ask: str, *, body: bytes | memoryview = b"", **values: Any
    ) -> tuple[dict[str, Any], memoryview]:
        header = {
            "ask": ask,
            "site": self.name,
            "instance": self._instance,
            "job": self._settings.digest,
            **values,
        }
        began = time.monotonic()
        try:
            answer, found = decode_frame(self._carrier(encode_frame(header, body)))
        except OSError:
            self._pieces.shrink()
            raise
        self._pieces.learn(time.monotonic() - began, len(body) + len(found))
        return answer, found


def check_result(
    site: str, settings: FederationSettings, result: SiteResult, received: Parameters, control: Parameters
) -> None:
    """Hold a site's own training to what the coordinator will ask, before anything leaves.

    Raises:
        FederationError: What the training returned that it must not.
    """
    travelling, _ = split_local(result.parameters, settings.local_names)
    for what, found, wanted in (
        ("parameters", travelling, received),
        ("control", result.control_variates, control),
    ):
        if found.keys() != wanted.keys() and (wanted or what == "parameters"):
            odd = sorted(found.keys() ^ wanted.keys())[0]
            raise FederationError(
                f"site {site}: training must return the {what} it was given; {odd} differs."
            )
    for name, array in travelling.items():
        like = received[name]
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            raise FederationError(
                f"site {site}: {name} must stay {like.dtype} {like.shape}; training returned "
                f"{array.dtype} "
                f"{array.shape}."
            )
    try:
        check_metric_names(result.metrics, settings)
    except DataError as fault:
        raise FederationError(f"site {site}: {fault} Nothing was sent.") from fault


def fit_rows(kept: Array | None, like: Array) -> Array:
    """What was kept, in the shape of ``like``, with zeros where nothing was: everywhere at first, and in the
    rows of structures that were added to the model since.
    """
    if kept is not None and kept.shape == like.shape:
        return kept
    fitted = np.zeros_like(like)
    if kept is not None:
        fitted[: len(kept)] = kept
    return fitted


def derive_seed(seed: int, site: str, round_number: int) -> int:
    """A seed of its own for each site and round, from the federation's: 63 bits."""
    text = f"{seed} {site} {round_number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def run_site(
    site: Site,
    *,
    poll_s: float = 1.0,
    max_wait_s: float = 30.0,
    heartbeat_s: float = 15.0,
    stop: threading.Event | None = None,
    say: Callable[[Step], None] = lambda step: None,
) -> Parameters | None:
    """Take part until the federation ends, through outages of any length.

    Args:
        site: Who.
        poll_s: How often to look.
        max_wait_s: Longest wait between two tries while the coordinator cannot be reached.
        heartbeat_s: How often to say that the site is alive while it trains.
        stop: Ends the run when set.
        say: Told every step that differs from the one before.

    Returns:
        The final model with the site's own local parameters; None if ``stop`` ended the run.
    """
    stop = stop or threading.Event()
    beating = threading.Thread(target=_beat, args=(site, heartbeat_s, stop), daemon=True)
    beating.start()
    wait_s, last = poll_s, Step("", "")
    while not stop.is_set():
        try:
            step = site.step()
            wait_s = poll_s
        except OSError:
            step = Step("waiting", "the coordinator cannot be reached")
            wait_s = min(2 * wait_s, max_wait_s)
        if step != last:
            say(step)
            last = step
        if step.kind == "finished":
            stop.set()
            return site.final
        if step.kind != "trained":
            stop.wait(wait_s)
    return None


def _beat(site: Site, every_s: float, stop: threading.Event) -> None:
    while not stop.wait(every_s):
        # The step that runs meanwhile meets the same fault and waits for its end.
        with contextlib.suppress(OSError, DataError):
            site.say_hello()
