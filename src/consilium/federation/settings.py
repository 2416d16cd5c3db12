"""What a federation agrees on before it starts: who takes part, with how many cases, by which rules."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from consilium.errors import ConfigurationError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""A federation's or site's name: it becomes a file name and a certificate's name."""

STRUCTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+ -]{0,62}")
METRICS = ("cases", "dice", "loss", "seconds", "steps")
"""The figures a site may report, each alone or per structure (``dice/Mandible``); nothing else leaves."""

MAX_SITES = 10_000
MAX_CASES = 10**7
MAX_TRAINING_CHARACTERS = 10**5


@dataclass(frozen=True, kw_only=True)
class SiteEnrolment:
    """What one hospital enrolled with; its updates are held to this.

    Args:
        name: Name of the site, as in its certificate.
        cases: Number of training cases: the most its updates may weigh.
        structures: Structure -> number of cases in which it is contoured; empty where heads are not per
            structure.
        heads_only_until: Up to this round (exclusive) only its heads count: a late site with a new organ
            teaches its head first and leaves the shared part alone.
    """

    name: str
    cases: int
    structures: Mapping[str, int] = field(default_factory=dict)
    heads_only_until: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"site: a name is letters, digits, - and _, at most 63; found {self.name[:80]!r}."
            )
        if type(self.cases) is not int or not 1 <= self.cases <= MAX_CASES:
            raise ConfigurationError(
                f"site {self.name}: cases must be 1 to {MAX_CASES}; found {self.cases!r}."
            )
        for structure, count in self.structures.items():
            if not STRUCTURE.fullmatch(structure):
                raise ConfigurationError(
                    f"site {self.name}: {structure[:80]!r} cannot be a structure's name."
                )
            if type(count) is not int or not 1 <= count <= self.cases:
                raise ConfigurationError(
                    f"site {self.name}: {structure} must be contoured in 1 to {self.cases} cases; found "
                    f"{count!r}."
                )


@dataclass(frozen=True, kw_only=True)
class HeadMap:
    """Which rows of which arrays belong to one structure: axis 0 of every array in ``tensors`` is divided
    evenly.

    Args:
        structures: In the order of the rows.
        tensors: Names of the head arrays; their length along axis 0 is a multiple of the number of
            structures.
    """

    structures: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.structures)) != len(self.structures) or len(set(self.tensors)) != len(self.tensors):
            raise ConfigurationError(
                "heads: structures and tensors must be named once each; one is repeated."
            )
        if self.tensors and not self.structures:
            raise ConfigurationError("heads: head tensors are declared; the list of structures is empty.")

    def rows(self, structure: str, length: int) -> slice:
        """The rows of ``structure`` in a head array with ``length`` rows.

        Raises:
            ConfigurationError: If ``length`` is not a multiple of the number of structures.
        """
        if length % len(self.structures):
            raise ConfigurationError(
                f"heads: {length} rows cannot be shared by {len(self.structures)} structures."
            )
        each = length // len(self.structures)
        index = self.structures.index(structure)
        return slice(index * each, (index + 1) * each)


@dataclass(frozen=True, kw_only=True)
class StrategyChoice:
    """Name of a combination rule and its numbers, e.g. ``fedprox`` with ``{"proximal_mu": 0.01}``."""

    name: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """Everything the coordinator and every site must agree on; its digest is what a site approves.

    Args:
        name: Name of the federation.
        rounds: Number of rounds.
        sites: The enrolled sites.
        quorum: Fewest accepted updates with which a round may close.
        deadline_s: A round closes then if it has the quorum.
        give_up_s: Below the quorum the round waits until then, and the run stops with what it has.
        presence_s: A site silent for so long counts as gone: another process may take its identity's place.
        clipping_norm: Longest change of all parameters together (L2); a longer one is scaled down to it.
        max_share: Largest part of all enrolled cases for which one site may count.
        strategy: The combination rule.
        heads: Which rows belong to which structure.
        local_names: Shell patterns of parameters that never travel (local normalisation).
        half_precision: Send changes as 16-bit numbers: half the bytes, slightly different models.
        keep_updates: Every site's consent that single updates are kept, sealed, until the end, to compute
            each site's contribution.
        seed: The seed from which sites derive theirs.
        training: What the sites' training has agreed on beside, as names with plain values, lists and
            tables; the federation itself reads nothing of it, but its digest, which sites approve, covers it.
    """

    name: str
    rounds: int
    sites: tuple[SiteEnrolment, ...]
    quorum: int = 1
    deadline_s: float = 3600.0
    give_up_s: float = 86400.0
    presence_s: float = 60.0
    clipping_norm: float = 1000.0
    max_share: float = 1.0
    strategy: StrategyChoice = field(default_factory=StrategyChoice)
    heads: HeadMap = field(default_factory=HeadMap)
    local_names: tuple[str, ...] = ()
    half_precision: bool = False
    keep_updates: bool = False
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"federation {self.name}"
        if not NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"federation: a name is letters, digits, - and _; found {self.name[:80]!r}."
            )
        _check_number(where, "rounds", self.rounds, 1, 10**6)
        names = [site.name for site in self.sites]
        if not 1 <= len(names) <= MAX_SITES or len(set(names)) != len(names):
            raise ConfigurationError(
                f"{where}: 1 to {MAX_SITES} sites with names of their own; found {len(names)}."
            )
        _check_number(where, "quorum", self.quorum, 1, len(names))
        _check_number(where, "deadline_s", self.deadline_s, 0.001, 10**7)
        _check_number(where, "give_up_s", self.give_up_s, self.deadline_s, 10**8)
        _check_number(where, "presence_s", self.presence_s, 0.0, 10**6)
        _check_number(where, "clipping_norm", self.clipping_norm, 1e-12, 1e12)
        _check_number(where, "max_share", self.max_share, 1e-9, 1.0)
        _check_plain(where, self.training)
        unknown = {s for site in self.sites for s in site.structures} - set(self.heads.structures)
        if self.heads.structures and unknown:
            raise ConfigurationError(
                f"{where}: sites contour {sorted(unknown)}, which heads.structures lacks. Add them there."
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of these settings in canonical JSON: what a site approves before it trains anything."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=dict)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def weight_cap(self) -> int:
        """The most that one update may weigh, in cases: ``max_share`` of all enrolled cases, at least 1."""
        return max(1, int(self.max_share * sum(site.cases for site in self.sites)))

    def get_site(self, name: str) -> SiteEnrolment | None:
        """The enrolment of ``name``; None if it is not enrolled."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, SiteEnrolment]:
        return {site.name: site for site in self.sites}


def _check_number(where: str, name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"{where}: {name} must be a finite number; found {value!r}.")
    if not low <= value <= high:
        raise ConfigurationError(f"{where}: {name} must be {low} to {high}; found {value}.")


def _check_plain(where: str, training: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(training, allow_nan=False, default=dict)
    except (TypeError, ValueError) as fault:
        raise ConfigurationError(f"{where}: training must hold plain values only; {fault}.") from fault
    if len(text) > MAX_TRAINING_CHARACTERS:
        raise ConfigurationError(f"{where}: training must fit in {MAX_TRAINING_CHARACTERS} characters.")


def build_settings(table: Mapping[str, Any]) -> FederationSettings:
    """Settings from a parsed TOML or JSON table with the same names; lists become tuples.

    Raises:
        ConfigurationError: If a name is unknown, missing, or a value cannot be.
    """
    known = {item.name for item in fields(FederationSettings)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigurationError(
            f"federation file: {unknown[0]!r} is not a setting. Known: {', '.join(sorted(known))}."
        )
    values = dict(table)
    try:
        values["sites"] = tuple(SiteEnrolment(**site) for site in table.get("sites", ()))
        values["strategy"] = StrategyChoice(**table.get("strategy", {}))
        heads = {key: _read_names(f"heads.{key}", names) for key, names in table.get("heads", {}).items()}
        values["heads"] = HeadMap(**heads)
        values["local_names"] = _read_names("local_names", table.get("local_names", ()))
        return FederationSettings(**values)
    except TypeError as fault:
        raise ConfigurationError(f"federation file: {fault}. Compare it with the reference.") from fault


def _read_names(where: str, names: Any) -> tuple[str, ...]:
    """A list of texts; a text alone would be read as one name per letter."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(
            f'federation file: {where} must be a list of texts, as ["one", "two"]; found {str(names)[:80]!r}.'
        )
    return tuple(names)


def encode_settings(settings: FederationSettings) -> dict[str, Any]:
    """The settings as plain JSON values; `build_settings` reads them back."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=dict))
    return table
