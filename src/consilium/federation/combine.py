"""From accepted updates to the next model, array by array: what is summed, what is merged, what the rule
makes of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from consilium.federation.accumulate import Part, WeightedSum, list_parts
from consilium.federation.journal import Journal, State
from consilium.federation.messages import CONTROL, PARAMETERS, wire_schema
from consilium.federation.parameters import Schema
from consilium.federation.settings import FederationSettings
from consilium.federation.strategies import Strategy
from consilium.federation.strategies.scaffold import Scaffold, combine_control
from consilium.federation.tensors import Tensors
from consilium.federation.updates import AcceptedUpdate, OpenRound
from consilium.types import Array


class Group(Mapping[str, Array]):
    """The arrays under one prefix of a file, by canonical name; read when asked for."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._names = tuple(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))

    def __getitem__(self, name: str) -> Array:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def schema(self) -> Schema:
        """Of this group, without the prefix."""
        whole = dict(self._tensors.schema.tensors)
        return Schema(tuple((name, whole[self._prefix + name]) for name in self._names))


def parameters_of(tensors: Tensors) -> Group:
    """The model parameters in a file that may hold control variates as well."""
    return Group(tensors, PARAMETERS)


def initial_arrays(
    initial: Mapping[str, Array], settings: FederationSettings, strategy: Strategy
) -> tuple[Schema, Iterator[tuple[str, Array]]]:
    """Schema and arrays of the first model file: what travels of ``initial``, and zero control variates."""
    schema = Schema.of(initial).without(settings.local_names)
    for name in settings.heads.tensors:
        settings.heads.rows(settings.heads.structures[0], schema[name].shape[0])

    def arrays() -> Iterator[tuple[str, Array]]:
        if strategy.uses_control:
            for name, array in _Zeros(schema).items():
                yield CONTROL + name, array
        for name in schema:
            yield PARAMETERS + name, initial[name]

    return wire_schema(schema, control=strategy.uses_control, half_precision=False), arrays()


def model_schema(journal: Journal, strategy: Strategy, *, parameters_only: bool = False) -> Schema:
    """Schema of the model file, or of the parameters in it."""
    tensors = journal.read(journal.need_state().model)
    return parameters_of(tensors).schema if parameters_only else tensors.schema


def open_round_of(
    journal: Journal, state: State, settings: FederationSettings, strategy: Strategy
) -> OpenRound:
    """What updates of the state's round are held against."""
    tensors = journal.read(state.model)
    base = parameters_of(tensors)
    control_norm = strategy.control_norm if isinstance(strategy, Scaffold) else 0.0
    return OpenRound(
        round_number=state.round_number,
        base=base,
        base_digest=state.model_digest,
        schema=base.schema,
        job_digest=state.job_digest,
        control=strategy.uses_control,
        control_norm=control_norm,
    )


class Collection:
    """The accepted updates of one round: added to a sum and dropped, or kept on disk if the rule needs them
    all.
    """

    def __init__(self, opened: OpenRound, settings: FederationSettings, strategy: Strategy) -> None:
        self.opened = opened
        self.weights: dict[str, int] = {}
        self.metrics: dict[str, Mapping[str, float]] = {}
        self._settings = settings
        self._strategy = strategy
        self._kept: list[AcceptedUpdate] = []
        self._sum: WeightedSum | None = None
        self._control: WeightedSum | None = None
        if not strategy.needs_every_update:
            total = sum(min(site.cases, settings.weight_cap) for site in settings.sites)
            # Scaling rounds to the array's own precision, so the reach leaves it some room.
            reach = settings.clipping_norm * 1.01
            self._sum = WeightedSum(
                opened.base, opened.schema, settings.heads, reach=reach, total_weight=total
            )
        if strategy.uses_control:
            zeros = _Zeros(opened.schema)
            reach = opened.control_norm * 1.01
            count = len(settings.sites)
            self._control = WeightedSum(zeros, opened.schema, settings.heads, reach=reach, total_weight=count)

    @property
    def sites(self) -> set[str]:
        """Whose updates are counted."""
        return set(self.weights)

    def add(self, accepted: AcceptedUpdate) -> None:
        """Count an update; with a running mean nothing of it stays."""
        if self._sum is None:
            self._kept.append(accepted)
        else:
            self._sum.add(accepted.arrays(), accepted.weight, accepted.structure_weights)
        if self._control is not None:
            known = dict.fromkeys(accepted.structure_weights, 1)
            self._control.add(accepted.control_changes(), min(1, accepted.weight), known)
        self.weights[accepted.site] = accepted.weight
        self.metrics[accepted.site] = accepted.metrics

    def means(self) -> Iterator[tuple[str, Array]]:
        """(prefixed name, array): the means of the changes of control variates, then of the parameters."""
        # In order of name, so that the digest is made while they are written.
        if self._control is not None:
            for name, array in self._control.means():
                yield CONTROL + name, array
        pairs = self._sum.means() if self._sum is not None else self._merge()
        for name, array in pairs:
            yield PARAMETERS + name, array

    def drop(self) -> None:
        """Remove what was kept of single updates."""
        for accepted in self._kept:
            source = accepted.update.tensors.source
            if isinstance(source, Path):
                source.unlink(missing_ok=True)
        self._kept.clear()

    def _merge(self) -> Iterator[tuple[str, Array]]:
        """A robust rule's result; in order of site names, so that arrival does not matter."""
        kept = sorted(self._kept, key=lambda accepted: accepted.site)
        chosen = [kept[index] for index in self._strategy.choose(self._measure_distances(kept))]
        for name in self.opened.schema:
            base = self.opened.base[name]
            values = [accepted.read(name) for accepted in chosen]
            merged = np.array(base)
            for part in list_parts(Schema(((name, self.opened.schema[name]),)), self._settings.heads):
                taking = [
                    v[part.rows] if part.structure else v
                    for v, a in zip(values, chosen, strict=True)
                    if _knows(a, part)
                ]
                enough = len(taking) >= min(self._strategy.least_updates, len(chosen))
                if taking and enough and part.structure:
                    merged[part.rows] = self._strategy.merge(taking)
                elif taking and enough:
                    merged = self._strategy.merge(taking)
            yield name, merged

    def _measure_distances(self, kept: list[AcceptedUpdate]) -> Array:
        squares = np.zeros((len(kept), len(kept)))
        for name in self.opened.schema:
            values = [accepted.read(name).astype(np.float64) for accepted in kept]
            for i, one in enumerate(values):
                for j in range(i):
                    squares[i, j] += float(np.sum(np.square(one - values[j])))
        return squares + squares.T


def _knows(accepted: AcceptedUpdate, part: Part) -> bool:
    """Whether it counts for these rows; a site whose heads alone count leaves the rest to the others."""
    if part.structure is None:
        return accepted.weight > 0
    return accepted.structure_weights.get(part.structure, 0) > 0


class _Zeros(Mapping[str, Array]):
    """Zeros of a schema, made when asked for."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def __getitem__(self, name: str) -> Array:
        spec = self._schema[name]
        return np.zeros(spec.shape, spec.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema)

    def __len__(self) -> int:
        return len(self._schema)


def commit_collected(journal: Journal, settings: FederationSettings, strategy: Strategy) -> State:
    """Make the next model from the collected means and commit it. The same state gives the same bits."""
    state = journal.need_state()
    if strategy.takes_mean:
        return journal.commit((state.means, state.means_digest), ("", ""))
    model, means = journal.read(state.model), journal.read(state.means)
    kept = journal.read(state.memory) if state.memory else None
    number = state.round_number + 1
    memory: dict[str, Array] = {}

    def arrays() -> Iterator[tuple[str, Array]]:
        for name in model:
            group, _, plain = name.partition("/")
            if group + "/" == CONTROL:
                shared = sum(weight > 0 for weight in state.counted.values())
                taking = len(state.counted) if plain in settings.heads.tensors else shared
                counts = {"participating": taking, "enrolled": len(settings.sites)}
                yield name, combine_control(model[name], means[name], **counts)
                continue
            zero = np.zeros(model[name].shape, model[name].dtype)
            before = {key: zero if kept is None else kept[f"{key}/{plain}"] for key in strategy.memory}
            new, after = strategy.combine(model[name], means[name], before, round_number=state.round_number)
            memory.update({f"{key}/{plain}": array for key, array in after.items()})
            yield name, new

    written = journal.write("model", number, model.schema, arrays())
    remembered = (
        journal.write("memory", number, Schema.of(memory), iter(memory.items())) if memory else ("", "")
    )
    return journal.commit(written, remembered)
