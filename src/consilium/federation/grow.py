"""A site that joins later with a new organ: the model grows by a head between two rounds, everything else
stays.
"""

from collections.abc import Mapping

import numpy as np

from consilium.errors import ConfigurationError
from consilium.federation.combine import Group, parameters_of
from consilium.federation.journal import Journal, State
from consilium.federation.messages import CONTROL, join_groups
from consilium.federation.parameters import Parameters, Schema
from consilium.federation.rounds import check_fit
from consilium.federation.settings import FederationSettings
from consilium.federation.strategies import build_strategy
from consilium.types import Array

PRIOR_LOGIT = -4.0
"""A new head starts at a bias of so much: nearly nothing is the new organ, and nothing of it is random."""


def add_structures(
    parameters: Mapping[str, Array],
    old: FederationSettings,
    new: FederationSettings,
    *,
    bias: float = PRIOR_LOGIT,
) -> Parameters:
    """The model with rows for the new structures: weights 0, biases ``bias``; every old row is unchanged.

    Raises:
        ConfigurationError: If the new settings do not only append structures to the old ones.
    """
    before, after = old.heads.structures, new.heads.structures
    if after[: len(before)] != before or old.heads.tensors != new.heads.tensors:
        raise ConfigurationError(
            f"federation {new.name}: new structures are appended to the old list; found {list(after)} after "
            f"{list(before)}."
        )
    grown = {name: np.array(array) for name, array in parameters.items()}
    for name in new.heads.tensors:
        array = parameters[name]
        each = array.shape[0] // len(before)
        fill = bias if array.ndim == 1 else 0.0
        rows = np.full((each * (len(after) - len(before)), *array.shape[1:]), fill, array.dtype)
        grown[name] = np.concatenate([array, rows])
    return grown


def extend_federation(journal: Journal, old: FederationSettings, new: FederationSettings) -> State:
    """Go on under new settings: more sites, more structures. Every site has to approve them again.

    Raises:
        ConfigurationError: If the journal was not begun under ``old``, or ``new`` changes more than sites and
            structures appended.
        FederationError: If a collected round waits to be committed: resume it first.
    """
    state = journal.need_state()
    if state.job_digest != old.digest:
        raise ConfigurationError(
            "federation: the journal was not begun under the old settings that were given."
        )
    if old.strategy != new.strategy or old.local_names != new.local_names:
        raise ConfigurationError(
            "federation: the strategy and the local names stay as they are in a running federation."
        )
    strategy = build_strategy(new.strategy)
    check_fit(new, strategy)
    tensors = journal.read(state.model)
    control = Group(tensors, CONTROL)
    grown = join_groups(
        add_structures(parameters_of(tensors), old, new),
        add_structures(control, old, new, bias=0.0) if len(control) else {},
    )
    model = journal.write(
        f"model-{new.digest[:8]}", state.round_number, Schema.of(grown), iter(grown.items())
    )
    memory = (state.memory, state.memory_digest)
    if state.memory:
        kept = journal.read(state.memory)
        pieces = {key: add_structures(Group(kept, f"{key}/"), old, new, bias=0.0) for key in strategy.memory}
        joined = {f"{key}/{name}": array for key, piece in pieces.items() for name, array in piece.items()}
        memory = journal.write(
            f"memory-{new.digest[:8]}", state.round_number, Schema.of(joined), iter(joined.items())
        )
    return journal.extend(model, memory, job_digest=new.digest)
