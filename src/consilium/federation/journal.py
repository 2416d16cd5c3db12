"""The coordinator's memory: OPEN -> COLLECTED -> COMMITTED, durable at every step, so that a kill costs one
round's wait.

``state.json`` is the truth and is replaced as a whole. It names the model, the rule's memory and, once a
round is collected, the means; all of them safetensors, written before they are named.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from consilium.errors import FederationError
from consilium.federation.audit import AuditLog
from consilium.federation.durable import FolderLock, remove_leftovers, write_durably
from consilium.federation.parameters import RunningDigest, Schema, compute_digest
from consilium.federation.tensors import Tensors, write_tensors
from consilium.types import Array

Phase = Literal["OPEN", "COLLECTED", "COMMITTED"]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the run stands.

    Args:
        phase: COMMITTED: ``round_number`` is to be opened. OPEN: it collects. COLLECTED: its means are on
            disk.
        round_number: The round the phase is about.
        job_digest: Digest of the settings.
        model: File name of the model that this round starts from; it is what sites receive.
        model_digest: Digest of its arrays.
        memory: File name of the rule's memory; empty if the rule has none.
        memory_digest: Digest of its arrays.
        means: File name of the collected means; empty before COLLECTED.
        means_digest: Digest of its arrays.
        counted: Site -> weight, of the collected round.
        last_counted: Site -> the last committed round that its update was part of.
        metrics: Site -> figures, of the collected round.
    """

    phase: Phase = "COMMITTED"
    round_number: int = 0
    job_digest: str = ""
    model: str = ""
    model_digest: str = ""
    memory: str = ""
    memory_digest: str = ""
    means: str = ""
    means_digest: str = ""
    counted: Mapping[str, int] = field(default_factory=dict)
    last_counted: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Journal:
    """The folder that survives the coordinator.

    Args:
        folder: Created when absent; one run per folder, and one process that writes.
        write: False to look at it only: nothing is changed, whoever writes there meanwhile.

    Raises:
        FederationError: If another process writes there, or the folder is damaged.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.folder = folder
        self._write = write
        self._lock = FolderLock(folder, "journal") if write else None
        with ExitStack() as where_it_fails:
            where_it_fails.callback(self.close)
            if write:
                remove_leftovers(folder)
            self.audit = AuditLog(folder / "audit.jsonl", write=write)
            self.state: State | None = self._load()
            where_it_fails.pop_all()

    def close(self) -> None:
        """Let another process use the folder."""
        if self._lock is not None:
            self._lock.close()

    def start(self, schema: Schema, arrays: Iterable[tuple[str, Array]], *, job_digest: str) -> State:
        """Write the first model and the first state.

        Raises:
            FederationError: If the folder already holds a run.
        """
        if self.state is not None:
            raise FederationError(
                f"journal {self.folder.name}: holds a run already. Resume it, or name an empty folder."
            )
        name, digest = self.write("model", 0, schema, arrays)
        return self._save(State(job_digest=job_digest, model=name, model_digest=digest))

    def write(
        self, kind: str, number: int, schema: Schema, arrays: Iterable[tuple[str, Array]]
    ) -> tuple[str, str]:
        """Write arrays durably under a name that no state names yet; returns the name and the digest.

        Raises:
            FederationError: If they cannot be written, e.g. on a full disk; the state is as before.
        """
        name = f"{kind}-{number:06d}.safetensors"
        running = RunningDigest()

        def passing() -> Iterator[tuple[str, Array]]:
            for array_name, array in arrays:
                running.add(array_name, array)
                yield array_name, array

        try:
            write_tensors(self.folder / name, schema, passing())
        except OSError as fault:
            raise FederationError(
                f"journal {self.folder.name}: {name} could not be written ({fault.strerror}). Free space "
                "there and "
                "resume: nothing that was committed is lost."
            ) from fault
        if running.in_order:
            return name, running.hexdigest()
        return name, compute_digest(Tensors(self.folder / name))

    def open_round(self) -> State:
        """COMMITTED -> OPEN; a round that was open when the coordinator was killed is opened again."""
        state = self.need_state()
        return self._save(replace(state, phase="OPEN", means="", means_digest="", counted={}, metrics={}))

    def collect(
        self, means: tuple[str, str], counted: Mapping[str, int], metrics: Mapping[str, Mapping[str, float]]
    ) -> State:
        """OPEN -> COLLECTED: from here on the round's result is fixed."""
        state = self.need_state()
        name, digest = means
        ordered = {site: dict(metrics[site]) for site in sorted(metrics)}
        weights = dict(sorted(counted.items()))
        return self._save(
            replace(
                state, phase="COLLECTED", means=name, means_digest=digest, counted=weights, metrics=ordered
            )
        )

    def commit(self, model: tuple[str, str], memory: tuple[str, str]) -> State:
        """COLLECTED -> COMMITTED: the next round starts from ``model``; files of before are removed."""
        old = self.need_state()
        last_counted = dict(old.last_counted) | dict.fromkeys(old.counted, old.round_number)
        new = State(
            round_number=old.round_number + 1,
            job_digest=old.job_digest,
            model=model[0],
            model_digest=model[1],
            memory=memory[0],
            memory_digest=memory[1],
            last_counted=dict(sorted(last_counted.items())),
        )
        self._save(new)
        self.audit.seal(old.round_number, new.model_digest)
        self._remove_unnamed()
        return new

    def need_state(self) -> State:
        """The state; FederationError if the folder holds no run."""
        if self.state is None:
            raise FederationError(f"journal {self.folder.name}: holds no run. Start one first.")
        return self.state

    def read(self, name: str) -> Tensors:
        """Arrays by file name."""
        return Tensors(self.folder / name)

    def extend(self, model: tuple[str, str], memory: tuple[str, str], *, job_digest: str) -> State:
        """Between two rounds, go on under new settings with a model that has grown (a late site's new organ).

        Raises:
            FederationError: If a round is under way.
        """
        state = self.need_state()
        if state.phase == "COLLECTED":
            raise FederationError(
                "journal: settings change between rounds only; a collected round waits. Resume it first."
            )
        self.audit.append("extended", state.round_number, job=job_digest, model_digest=model[1])
        new = replace(
            state, phase="COMMITTED", job_digest=job_digest, model=model[0], model_digest=model[1],
            memory=memory[0], memory_digest=memory[1],
        )  # fmt: skip
        self._save(new)
        self._remove_unnamed()
        return new

    def report(self, event: str, site: str, detail: str) -> None:
        """Put what happened at the desk into the log, under the round at hand."""
        number = self.state.round_number if self.state else 0
        self.audit.append(event, number, site=site, reason=detail)

    def _save(self, state: State) -> State:
        body = json.dumps(asdict(state), sort_keys=True, indent=1)
        document = {"state": asdict(state), "digest": hashlib.sha256(body.encode()).hexdigest()}
        try:
            write_durably(self.folder / "state.json", json.dumps(document, sort_keys=True, indent=1).encode())
        except OSError as fault:
            raise FederationError(
                f"journal {self.folder.name}: the state could not be written ({fault.strerror}). Free space "
                "there and resume."
            ) from fault
        self.state = state
        return state

    def _load(self) -> State | None:
        path = self.folder / "state.json"
        if not path.exists():
            if self.audit.seals:
                raise FederationError(
                    f"journal {self.folder.name}: state.json is missing although {len(self.audit.seals)} "
                    "rounds are "
                    "sealed. Restore it from a copy."
                )
            return None
        state = self._parse(path)
        self._check_against_audit(state)
        for name, digest in (
            (state.model, state.model_digest),
            (state.memory, state.memory_digest),
            (state.means, state.means_digest),
        ):
            if name and (not (self.folder / name).is_file() or compute_digest(self.read(name)) != digest):
                raise FederationError(
                    f"journal {self.folder.name}: {name} is missing or is not what was committed. Restore "
                    "it from a copy."
                )
        return state

    def _parse(self, path: Path) -> State:
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            state = State(**document["state"])
            body = json.dumps(asdict(state), sort_keys=True, indent=1)
            intact = hashlib.sha256(body.encode()).hexdigest() == document["digest"]
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise FederationError(
                f"journal {self.folder.name}: state.json is damaged. Restore it from a copy."
            )
        return state

    def _check_against_audit(self, state: State) -> None:
        """The log holds as many seals as rounds are committed, or one fewer after a kill between the two."""
        sealed = len(self.audit.seals)
        if sealed == state.round_number - 1 and state.phase == "COMMITTED":
            if self._write:
                self.audit.seal(state.round_number - 1, state.model_digest)
        elif sealed != state.round_number:
            raise FederationError(
                f"journal {self.folder.name}: {state.round_number} rounds are committed but {sealed} are "
                "sealed in the "
                "audit log: one of the two was rolled back. Restore both from the same copy."
            )

    def _remove_unnamed(self) -> None:
        state = self.need_state()
        named = {state.model, state.memory, state.means}
        for path in self.folder.glob("*-[0-9]*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)
