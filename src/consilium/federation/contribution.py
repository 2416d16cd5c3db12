"""What each site gave: the score of every round's model with and without it, over the rounds it took part in.

Single updates must outlive their round for this. They are kept only with every site's consent
(``keep_updates``), encrypted with a key that lives in this process's memory alone, and deleted at the end.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.accumulate import WeightedSum
from consilium.federation.parameters import Parameters, Schema
from consilium.federation.settings import HeadMap
from consilium.federation.tensors import Tensors, encode_tensors
from consilium.federation.updates import AcceptedUpdate
from consilium.types import Array

EQUAL = 0.01
"""Two updates are the same where they are closer than this share of the usual way between two sites."""

Score = Callable[[Parameters], float]
"""How good a model is, higher is better; e.g. the mean of the sites' hold-out Dice."""


@dataclass(frozen=True, kw_only=True)
class KeptUpdate:
    """One site's model of one round, and what it counted for."""

    site: str
    round_number: int
    parameters: Mapping[str, Array]
    weight: int
    structure_weights: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one site gave.

    Args:
        site: Who.
        mean_gain: Mean over its rounds of score(all) - score(all without it); NaN if it took part in none,
            or was alone in every one.
        rounds: In how many rounds this could be measured.
        same_as: Sites that sent the same update in every round that both took part in. Nobody can tell
            from figures whose patients they are, so none of them is credited before the others.
    """

    site: str
    mean_gain: float
    rounds: int
    same_as: tuple[str, ...] = ()


class SealedStore:
    """Accepted updates on disk, readable only while this object lives.

    Args:
        folder: Created when absent; emptied by `destroy`.

    Raises:
        ConfigurationError: If ``cryptography`` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as fault:
            raise ConfigurationError(
                "contribution: keeping updates sealed needs cryptography. pip install "
                "'consilium[federation]'."
            ) from fault
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cipher = AESGCM(AESGCM.generate_key(bit_length=256))
        self._weights: dict[tuple[int, str], tuple[int, dict[str, int]]] = {}

    def keep(self, accepted: AcceptedUpdate) -> None:
        """Keep an update; give this to `run_rounds`."""
        key = (accepted.opened.round_number, accepted.site)
        nonce = os.urandom(12)
        plain = encode_tensors(dict(accepted.arrays()))
        self._path(key).write_bytes(nonce + self._cipher.encrypt(nonce, plain, f"{key}".encode()))
        self._weights[key] = accepted.weight, dict(accepted.structure_weights)

    def read_round(self, round_number: int) -> list[KeptUpdate]:
        """The updates of one round, in order of site; empty if none was kept."""
        return [self._read(key) for key in sorted(self._weights) if key[0] == round_number]

    def list_rounds(self) -> list[int]:
        """Rounds of which something was kept."""
        return sorted({number for number, _ in self._weights})

    def destroy(self) -> None:
        """Delete everything; the key is gone with this object."""
        for key in self._weights:
            self._path(key).unlink(missing_ok=True)
        self._weights.clear()

    def _path(self, key: tuple[int, str]) -> Path:
        return self._folder / f"{key[0]:06d}-{key[1]}.sealed"

    def _read(self, key: tuple[int, str]) -> KeptUpdate:
        (weight, structure_weights), content = self._weights[key], self._path(key).read_bytes()
        plain = self._cipher.decrypt(content[:12], content[12:], f"{key}".encode())
        return KeptUpdate(
            site=key[1],
            round_number=key[0],
            parameters=dict(Tensors(plain)),
            weight=weight,
            structure_weights=structure_weights,
        )


def average(updates: Sequence[KeptUpdate], heads: HeadMap) -> Parameters:
    """The weighted mean of some updates, as the round makes it.

    Raises:
        FederationError: If there are none.
    """
    if not updates:
        raise FederationError("contribution: a mean needs at least one update; there is none.")
    base = updates[0].parameters
    total = max(1, sum(max(u.weight, *u.structure_weights.values(), 0) for u in updates))
    reach = (
        2 * max(float(np.max(np.abs(a), initial=0.0)) for u in updates for a in u.parameters.values()) + 1.0
    )
    running = WeightedSum(base, Schema.of(base), heads, reach=reach, total_weight=total)
    for update in updates:
        running.add(update.parameters.items(), update.weight, update.structure_weights)
    return dict(running.means())


def compute_contributions(
    rounds: Sequence[Sequence[KeptUpdate]], sites: Sequence[str], score: Score, heads: HeadMap | None = None
) -> list[Contribution]:
    """Leave-one-out over rounds, tolerant of absences: a site is judged on the rounds it took part in.

    Args:
        rounds: The kept updates of every round to look at; a few rounds are enough.
        sites: All enrolled sites.
        score: The value of a model.
        heads: Which rows belong to which structure.

    Returns:
        One entry per site, the largest contribution first; then those that sent the same as another, then
        NaN.
    """
    gains: dict[str, list[float]] = {site: [] for site in sites}
    for updates in rounds:
        if len(updates) < 2:
            continue
        everyone = score(average(updates, heads or HeadMap()))
        for update in updates:
            others = [other for other in updates if other.site != update.site]
            gains[update.site].append(everyone - score(average(others, heads or HeadMap())))
    equal = find_equal(rounds)
    found = [
        Contribution(
            site=site,
            mean_gain=float(np.mean(values)) if values else math.nan,
            rounds=len(values),
            same_as=equal.get(site, ()),
        )
        for site, values in gains.items()
    ]
    return sorted(found, key=lambda c: (math.isnan(c.mean_gain), bool(c.same_as), -c.mean_gain, c.site))


def find_equal(rounds: Sequence[Sequence[KeptUpdate]]) -> dict[str, tuple[str, ...]]:
    """Site -> the sites that sent the same update in every round that both took part in.

    The same patients enrolled twice give updates that are equal up to rounding: closer than `EQUAL` times
    the median distance between two sites of the round. Patients copied under other pseudonyms train in
    another order, and their updates are not equal.
    """
    verdicts: dict[tuple[str, str], bool] = {}
    for updates in rounds:
        apart = {
            (one.site, other.site): _distance(one.parameters, other.parameters)
            for one, other in itertools.combinations(updates, 2)
        }
        typical = float(np.median(list(apart.values()))) if apart else 0.0
        for pair, distance in apart.items():
            verdicts[pair] = verdicts.get(pair, True) and distance <= EQUAL * typical
    found: dict[str, list[str]] = {}
    for (one, other), equal in verdicts.items():
        if equal:
            found.setdefault(one, []).append(other)
            found.setdefault(other, []).append(one)
    return {site: tuple(sorted(others)) for site, others in found.items()}


def _distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Euclidean, over all parameters."""
    return math.sqrt(
        sum(float(np.sum((np.asarray(one[name], np.float64) - other[name]) ** 2)) for name in one)
    )
