"""Tiny models and sites: training is a step towards the site's own target, with seeded noise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.messages import UpdateHeader, encode_update
from consilium.federation.parameters import Parameters, Schema, compute_digest
from consilium.federation.settings import FederationSettings, HeadMap, SiteEnrolment
from consilium.federation.updates import OpenRound
from consilium.types import Array

STRUCTURES = ("Brainstem", "Mandible", "Larynx")
HEADS = HeadMap(structures=STRUCTURES, tensors=("head.bias", "head.weight"))


def build_model(seed: int = 0, *, heads: bool = False) -> Parameters:
    """A model of a few dozen numbers, of very different sizes."""
    rng = np.random.default_rng(seed)
    model = {
        "encoder.0.weight": rng.normal(size=(4, 2, 1, 3, 3)).astype(np.float32),
        "encoder.0.bias": (1e-9 * rng.normal(size=4)).astype(np.float32),
        "encoder.0.norm.weight": np.ones(4, np.float32),
        "scale": np.array(0.5, np.float32),
    }
    if heads:
        model["head.weight"] = rng.normal(size=(3, 4)).astype(np.float32)
        model["head.bias"] = np.zeros(3, np.float32)
    return model


def build_settings_for(count: int, **changes: Any) -> FederationSettings:
    """A federation of ``count`` sites ``site-0 …``, each enrolled with 10 cases."""
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(count))
    # Deadlines are far away unless a test sets them: nothing may depend on how busy the machine is.
    plain = FederationSettings(name="toy", rounds=3, sites=sites, quorum=1, deadline_s=600.0, give_up_s=900.0)
    return replace(plain, **changes)


def build_local_update(
    site: str, *, cases: int = 10, noise: float = 0.01, structures: dict[str, int] | None = None
) -> LocalUpdate:
    """Training that moves a tenth of the way to the site's target and adds noise from the task's seed."""
    target = int.from_bytes(site.encode(), "little") % 1000 / 500 - 1.0

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        rng = np.random.default_rng(task.seed)
        after = {}
        for name in sorted(parameters):
            old = parameters[name]
            step = 0.1 * (target - old) + noise * rng.normal(size=old.shape)
            after[name] = np.asarray(old + step).astype(old.dtype)
        loss = float(np.mean([(a - target).mean() ** 2 for a in after.values()]))
        known = structures or {}
        return SiteResult(parameters=after, weight=cases, cases_by_structure=known, metrics={"loss": loss})

    return train


def compute_control_variates(
    received: Mapping[str, Array],
    trained: Mapping[str, Array],
    correction: Mapping[str, Array],
    *,
    steps: int,
    learning_rate: float,
) -> Parameters:
    """SCAFFOLD's option II for plain gradient descent: ``(x - y) / (K * rate) - (c - c_i)``."""
    new = {}
    for name, start in received.items():
        change = (start.astype(np.float64) - trained[name]) / (steps * learning_rate)
        new[name] = (change - correction[name]).astype(start.dtype)
    return new


def build_round(model: Parameters, settings: FederationSettings, *, round_number: int = 0) -> OpenRound:
    """The open round of a model, without a journal."""
    return OpenRound(
        round_number=round_number,
        base=model,
        base_digest=compute_digest(model),
        schema=Schema.of(model),
        job_digest=settings.digest,
    )


def build_header(opened: OpenRound, site: str = "site-0", **changes: Any) -> UpdateHeader:
    """The header of an honest update."""
    honest = UpdateHeader(
        site=site,
        round_number=opened.round_number,
        job_digest=opened.job_digest,
        base_digest=opened.base_digest,
        weight=10,
        cases_by_structure={},
        metrics={"loss": 0.5},
    )
    return replace(honest, **changes)


def build_update_bytes(
    opened: OpenRound, parameters: Parameters, site: str = "site-0", **changes: Any
) -> bytes:
    """An update as it travels."""
    return encode_update(build_header(opened, site, **changes), parameters, {})


def shift(model: Parameters, amount: float) -> Parameters:
    """Every element moved by ``amount``."""
    return {name: (array + amount).astype(array.dtype) for name, array in model.items()}


def same_bits(first: Parameters, second: Parameters) -> bool:
    """Equal names, kinds, shapes and bytes."""
    return compute_digest(first) == compute_digest(second)
