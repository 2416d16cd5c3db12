"""Whether an update is taken: who sent it, for which round and model, of which shape, how large, how
heavy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from consilium.errors import DataError, UpdateRefused
from consilium.federation.messages import CONTROL, PARAMETERS, Update, check_metric_names, wire_schema
from consilium.federation.parameters import Schema
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.types import Array

BLOCK = 2**17
"""Elements whose squares are summed at a time; another number would change the last bits of a length."""


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """What updates of the open round are held against.

    Args:
        round_number: The open round.
        base: The model sent out, by canonical name.
        base_digest: Its digest.
        schema: Its schema.
        job_digest: Digest of the settings.
        control: Whether updates carry changes of control variates.
        control_norm: Longest change of control variates (L2).
    """

    round_number: int
    base: Mapping[str, Array]
    base_digest: str
    schema: Schema
    job_digest: str
    control: bool = False
    control_norm: float = 1e6


@dataclass(frozen=True, kw_only=True)
class AcceptedUpdate:
    """An update that passed; its arrays are read again when they are added.

    Args:
        site: Who sent it.
        weight: What its shared arrays count for; 0 while only its heads count.
        structure_weights: What its heads count for.
        metrics: Its figures.
        norm: Length of its change before scaling.
        scale: Factor that brought the change to the clipping norm; 1 if it was short enough.
        control_scale: The same for the change of its control variates.
        capped: Whether the cap on one site's share lowered its weight.
    """

    site: str
    weight: int
    structure_weights: Mapping[str, int]
    metrics: Mapping[str, float]
    norm: float
    scale: float
    control_scale: float
    capped: bool
    update: Update
    opened: OpenRound

    def read(self, name: str) -> Array:
        """One array of the model this update stands for, scaled towards the base if it was too far."""
        if self.scale == 1.0 and self.update.header.content == "parameters":
            return self.update.tensors[PARAMETERS + name]
        base = self.opened.base[name]
        values = read_parameter(self.update, name, base)
        if self.scale < 1.0:
            change = (values.astype(np.float64) - base) * self.scale
            values = (base + change).astype(base.dtype)
        return values

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """The whole model this update stands for, array by array."""
        for name in self.opened.schema:
            yield name, self.read(name)

    def control_changes(self) -> Iterator[tuple[str, Array]]:
        """The change of the site's control variates, array by array."""
        for name in self.opened.schema:
            change = self.update.tensors[CONTROL + name]
            wanted = self.opened.base[name].dtype
            yield name, (change.astype(np.float64) * self.control_scale).astype(wanted)


def read_parameter(update: Update, name: str, base: Array) -> Array:
    """One array of the model an update stands for, in the model's own kind of number."""
    values = update.tensors[PARAMETERS + name]
    if update.header.content == "change":
        values = (base + values.astype(base.dtype)).astype(base.dtype)
    return values


def check_update(
    update: Update, site: str, opened: OpenRound, settings: FederationSettings
) -> AcceptedUpdate:
    """Take an update or refuse it by name.

    Args:
        update: As read; its header is already known to be well formed.
        site: Who sent it, as the transport authenticated it.
        opened: The open round.
        settings: What the federation agreed on.

    Raises:
        UpdateRefused: With the reason; the round goes on.
    """
    header = update.header

    def refuse(reason: str) -> UpdateRefused:
        return UpdateRefused(site, opened.round_number, reason)

    enrolment = settings.get_site(site)
    if enrolment is None:
        raise refuse("the site is not enrolled")
    if header.site != site:
        raise refuse("it bears another site's name")
    if header.round_number != opened.round_number:
        verb = "is closed" if header.round_number < opened.round_number else "is not open yet"
        raise refuse(f"round {header.round_number} {verb}; round {opened.round_number} is open")
    if header.job_digest != opened.job_digest:
        raise refuse("it was made under other settings than this federation's")
    if header.base_digest != opened.base_digest:
        raise refuse("it was trained from another model than the one sent in this round")
    _check_schema(update, opened, settings, refuse_prefix=site)
    try:
        check_metric_names(header.metrics, settings)
    except DataError as fault:
        raise refuse(str(fault)) from fault
    weight, structure_weights, capped = _check_weights(update, enrolment, opened, settings)
    norm, control_norm = measure_change(update, opened)
    for length, what in ((norm, "parameters"), (control_norm, "control variates")):
        if not math.isfinite(length):
            raise refuse(f"its {what} hold NaN or infinite values")
    return AcceptedUpdate(
        site=site,
        weight=weight,
        structure_weights=structure_weights,
        metrics=dict(header.metrics),
        norm=norm,
        scale=_scale(norm, settings.clipping_norm),
        control_scale=_scale(control_norm, opened.control_norm),
        capped=capped,
        update=update,
        opened=opened,
    )


def _scale(norm: float, limit: float) -> float:
    return 1.0 if norm <= limit else limit / norm


def _check_schema(
    update: Update, opened: OpenRound, settings: FederationSettings, *, refuse_prefix: str
) -> None:
    wanted = wire_schema(opened.schema, control=opened.control, half_precision=settings.half_precision)
    difference = wanted.find_difference(update.tensors.schema)
    if difference:
        raise UpdateRefused(
            refuse_prefix, opened.round_number, f"its arrays are not the model's: {difference}"
        )
    content = "change" if settings.half_precision else "parameters"
    if update.header.content != content:
        raise UpdateRefused(refuse_prefix, opened.round_number, f"it must carry {content}")


def _check_weights(
    update: Update, enrolment: SiteEnrolment, opened: OpenRound, settings: FederationSettings
) -> tuple[int, dict[str, int], bool]:
    """What the update counts for: its cases, held to the enrolment, lowered to the cap on one site's
    share.
    """
    header, site = update.header, enrolment.name
    if header.weight > enrolment.cases:
        reason = f"weight must be at most the {enrolment.cases} cases it enrolled with; found {header.weight}"
        raise UpdateRefused(site, opened.round_number, reason)
    for structure, count in header.cases_by_structure.items():
        most = enrolment.structures.get(structure, 0)
        if count > most:
            known = structure if structure in settings.heads.structures else "an unknown structure"
            reason = f"{known} must count at most {most} cases as enrolled; found {count}"
            raise UpdateRefused(site, opened.round_number, reason)
    cap = settings.weight_cap
    weight = min(header.weight, cap)
    if opened.round_number < enrolment.heads_only_until:
        weight = 0
    structure_weights = {name: min(count, cap) for name, count in header.cases_by_structure.items()}
    return weight, structure_weights, header.weight > cap


def sum_of_squares(values: Array, base: Array | None = None) -> float:
    """Of ``values - base`` in float64, block by block: in little memory, and with one order of the terms."""
    flat = values.reshape(-1)
    centre = None if base is None else base.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK].astype(np.float64)
        if centre is not None:
            block -= centre[start : start + BLOCK]
        total += float(np.sum(np.square(block, out=block)))
    return total


def measure_change(update: Update, opened: OpenRound) -> tuple[float, float]:
    """Length (L2) of the change of the parameters and of the control variates; NaN or inf if any value is."""
    squares, control_squares = 0.0, 0.0
    # A hostile value may overflow on the way; the result is then infinite and is refused.
    with np.errstate(over="ignore", invalid="ignore"):
        for name in opened.schema:
            base = None if update.header.content == "change" else opened.base[name]
            squares += sum_of_squares(update.tensors[PARAMETERS + name], base)
            if opened.control:
                control_squares += sum_of_squares(update.tensors[CONTROL + name])
    lengths = [math.sqrt(s) if s >= 0 else math.nan for s in (squares, control_squares)]
    return lengths[0], lengths[1]
