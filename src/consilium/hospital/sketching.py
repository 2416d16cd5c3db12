"""From a hospital's dataset to the sketch that it sends, and from all sketches to the plan of everybody."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, DataError
from consilium.federation.invitation import SKETCHES
from consilium.federation.plan_sketch import (
    MINIMUM_CASES,
    MODALITIES,
    VOLUME,
    Sketch,
    build_sketch,
    decode_sketch,
    merge_sketches,
)
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.hospital.agreement import check_names, head_map, plan_from_table, plan_table, read_config
from consilium.training.config import TrainingConfig
from consilium.training.data import load_reference, usable_annotation
from consilium.training.facts import Facts, crop_choice, list_volumes_mm3, measure_kept
from consilium.training.planning import decide_plan
from consilium.types import Array, Progress, Shape, Triple, no_progress

VOXELS_PER_CASE = 2000
"""Intensities taken from inside the structures of one case, before they become parts of a million."""

NOT_COMPARED = ("reasons", "predicted_bytes", "memory_bytes")
DEFAULT_MEMORY_GIB = 8.0
SMALLEST_PRIOR = 1e-4


def sketch_dataset(
    dataset: Dataset, *, reader: str | None = None, progress: Progress = no_progress
) -> Sketch:
    """What a hospital tells of its data: counts and histograms, nothing of a single case.

    Structures that fewer than `MINIMUM_CASES` cases know, or whose name a federation cannot have, are left
    out.

    Args:
        dataset: Its cases with at least one contour.
        reader: Whose contours; None: each case's first reader who is not derived.
        progress: Told after each image.

    Raises:
        DataError: With fewer than `MINIMUM_CASES` contoured cases nothing may be sent.
    """
    config = TrainingConfig(reader=reader)
    cases = [case for case in dataset.cases() if known_structures(case, reader)]
    if len(cases) < MINIMUM_CASES:
        raise DataError(
            f"sketch: needs at least {MINIMUM_CASES} contoured cases, so that no single one shows; found "
            f"{len(cases)}. Import more, or let the coordinator write this hospital's counts by hand."
        )
    kinds = sorted({case.image.modality for case in cases})
    modality = kinds[0] if kinds[0] in MODALITIES and len(kinds) == 1 else "OTHER"
    grids = [case.image.grid.to_canonical()[0] for case in cases]
    per_case: dict[str, list[float]] = {}
    kept = measure_kept(dataset, cases, progress=progress)
    for k, axis in enumerate("zyx"):
        per_case[f"spacing_{axis}_mm"] = [grid.spacing_zyx_mm[k] for grid in grids]
        per_case[f"extent_{axis}_mm"] = [grid.spacing_zyx_mm[k] * grid.shape_zyx[k] for grid in grids]
        per_case[f"kept_{axis}"] = [float(share) for share in kept[:, k]]
    known = count_structures(cases, reader)
    return build_sketch(
        per_case,
        (_sample_intensities(dataset, case, reader) for case in cases),
        structures=known,
        volumes_mm3={name: list_volumes_mm3(cases, name, config) for name in known},
        modality=modality,
    )


def count_structures(cases: Iterable[Case], reader: str | None = None) -> dict[str, int]:
    """Structure -> number of cases of which it is known, in order of names; see `known_structures`."""
    return dict(sorted(Counter(name for case in cases for name in known_structures(case, reader)).items()))


def known_structures(case: Case, reader: str | None = None) -> list[str]:
    """Structures of which the case says something usable."""
    return [name for name in case.structures if usable_annotation(case, name, reader) is not None]


def _sample_intensities(dataset: Dataset, case: Case, reader: str | None) -> Array:
    """Some intensities inside the structures, evenly spaced so that the same case gives the same ones."""
    image = dataset.load_image(case).array
    found = []
    for name in known_structures(case, reader):
        annotation = usable_annotation(case, name, reader)
        if annotation is not None and annotation.state is State.CONTOURED:
            mask = load_reference(dataset, case, name, reader)
            found.append(image[mask] if mask is not None else image[:0].ravel())
    inside = np.concatenate(found) if found else image.ravel()
    return inside[:: max(1, len(inside) // VOXELS_PER_CASE)]


def imagine_facts(sketch: Sketch, structures: Sequence[str], config: TrainingConfig) -> Facts:
    """Facts with the sketch's distributions: grids that no hospital has, but that give the same plan."""
    is_ct = sketch.modality == "CT"
    grids = []
    columns = [
        np.stack([sketch.values(f"{what}_{axis}_mm") for axis in "zyx"], axis=1)
        for what in ("spacing", "extent")
    ]
    for spacing, extent in zip(*columns, strict=True):
        z, y, x = (int(n) for n in np.maximum(1, np.rint(extent / spacing)))
        shape: Shape = (z, y, x)
        size: Triple = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        grids.append(Grid(shape, Affine.from_spacing(size)))
    body = crop_choice(config, is_ct=is_ct) == "body"
    kept = [float(np.mean(sketch.values(f"kept_{axis}"))) if body else 1.0 for axis in "zyx"]
    volumes = {
        name: [float(v) for v in sketch.values(VOLUME + name)]
        for name in structures
        if VOLUME + name in sketch.counts
    }
    return Facts(
        structures=tuple(structures), is_ct=is_ct, grids=grids, kept_zyx=np.array(kept), volumes_mm3=volumes
    )


def derive_training(sketches: Mapping[str, Sketch], table: Mapping[str, Any]) -> dict[str, Any]:
    """The ``[training]`` table with plan and prior: the same for everybody who has the same sketches.

    Args:
        sketches: Site -> its sketch.
        table: ``[training]`` as people wrote it; an earlier plan in it is replaced.

    Raises:
        DataError: No sketch, or images of several kinds.
        ConfigurationError: A structure asked for that no site knows.
    """
    check_names(table)
    merged = merge_sketches([sketches[name] for name in sorted(sketches)])
    config = read_config(table)
    structures = config.structures or tuple(merged.structures)
    missing = [name for name in structures if name not in merged.structures]
    if missing or not structures:
        raise ConfigurationError(
            f"plan: some site must know every structure; nobody knows {missing or 'any'}. Known are "
            f"{sorted(merged.structures)}."
        )
    facts = imagine_facts(merged, structures, config)
    plan = decide_plan(
        facts,
        replace(config, structures=structures),
        memory_bytes=int(float(table.get("memory_gib", DEFAULT_MEMORY_GIB)) * 2**30),
        device=torch.device(str(table.get("device", "cpu"))),
        bf16=False,
    )
    # Planned for float32, which every machine computes; where bfloat16 is fast, it may be used.
    plan = replace(plan, network=replace(plan.network, bf16=bool(table.get("bf16", True))))
    extent = np.prod([np.mean(merged.values(f"extent_{axis}_mm")) for axis in "zyx"])
    seen_mm3 = float(extent * np.prod(facts.kept_zyx))
    prior = [
        max(SMALLEST_PRIOR, round(float(np.mean(facts.volumes_mm3[name])) / seen_mm3, 6))
        if name in facts.volumes_mm3
        else SMALLEST_PRIOR
        for name in structures
    ]
    return {**table, "plan": plan_table(plan), "prior": prior}


def plan_federation(settings: FederationSettings, sketches: Mapping[str, Sketch]) -> FederationSettings:
    """The federation with everything that follows from the sketches: sites' counts, heads, plan and prior.

    Sites without a sketch keep what the file says of them; sites that only have a sketch are added.

    Raises:
        DataError: No sketch, or images of several kinds.
        ConfigurationError: Something in the file cannot be.
    """
    training = derive_training(sketches, settings.training)
    structures = tuple(training["plan"]["structures"])
    sites = {site.name: site for site in settings.sites}
    for name, sketch in sketches.items():
        old = sites.get(name)
        sites[name] = SiteEnrolment(
            name=name,
            cases=sketch.cases,
            structures={s: n for s, n in sketch.structures.items() if s in structures},
            heads_only_until=0 if old is None else old.heads_only_until,
        )
    heads = head_map(plan_from_table(training["plan"]))
    return replace(settings, sites=tuple(sites.values()), heads=heads, training=training)


def check_plan(settings: FederationSettings, sketches: Mapping[str, Sketch]) -> None:
    """See for oneself that the plan follows from the sketches.

    Raises:
        ConfigurationError: If it does not.
    """
    derived = derive_training(sketches, settings.training)
    for name in ("plan", "prior"):
        if _plain(derived[name]) != _plain(settings.training.get(name)):
            raise ConfigurationError(
                f"federation file: [training] {name} must follow from the hospitals' sketches; it does not. "
                "Ask the coordinator for the file that consilium federation plan wrote."
            )


def _plain(value: Any) -> Any:
    """What a training depends on: not the reasons, which are words, nor predictions of memory, which may
    differ between versions; tuples and lists are the same here.
    """
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if key not in NOT_COMPARED}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def save_sketches(folder: Path, sketches: Mapping[str, Sketch]) -> None:
    """Write `SKETCHES` beside the federation file."""
    table = {name: json.loads(sketch.encode()) for name, sketch in sorted(sketches.items())}
    (folder / SKETCHES).write_text(json.dumps(table, sort_keys=True), encoding="utf-8")


def load_sketches(folder: Path) -> dict[str, Sketch]:
    """The sketches beside the federation file; empty where there are none.

    Raises:
        DataError: The file holds something else.
    """
    path = folder / SKETCHES
    if not path.is_file():
        return {}
    try:
        table = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as fault:
        raise ConfigurationError(
            f"{SKETCHES}: must be JSON; it is not. Get it from the coordinator."
        ) from fault
    return {name: decode_sketch(json.dumps(sketch).encode()) for name, sketch in table.items()}
