"""nnU-Net raw out: overlaps become regions, what is unknown gets the ignore label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.files import write_json
from consilium.cases.nifti import write_nifti
from consilium.errors import DataError
from consilium.geometry.volume import Volume
from consilium.types import Array, Progress, no_progress

MAX_STRUCTURES = 62
"""A voxel's structures are told apart as bits of a 64-bit number."""


def export_nnunet(
    dataset: Dataset,
    cases: Sequence[Case],
    out: Path,
    *,
    structures: Sequence[str] = (),
    reader: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write ``imagesTr``, ``labelsTr`` and ``dataset.json`` as nnU-Net version 2 takes them.

    A code stands for one combination of structures, so that structures may overlap; a structure is the
    region of its codes. Where a structure is unknown in a case, voxels outside every known structure get the
    ignore label.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: If there are no cases, or more than 62 structures.
    """
    names = tuple(structures) or tuple(sorted({s for case in cases for s in case.structures}))
    if not cases or not 1 <= len(names) <= MAX_STRUCTURES:
        raise DataError(
            f"nnU-Net export: there must be cases and 1 to {MAX_STRUCTURES} structures; "
            f"found {len(cases)} and {len(names)}. Choose with --case and --structure."
        )
    combinations: set[int] = set()
    for case in cases:
        combinations |= {int(v) for v in np.unique(_bits(dataset, case, names, reader))}
    codes = {bits: code for code, bits in enumerate(sorted(combinations - {0}, key=_order), start=1)}
    ignore = len(codes) + 1
    partly = False
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, start=1):
        labels = _labels(_bits(dataset, case, names, reader), codes)
        if any(case.state(name, reader) is State.UNKNOWN for name in names):
            labels[labels == 0] = ignore
            partly = True
        image = dataset.load_image(case)
        write_nifti(out / "imagesTr" / f"{case.case_id}_0000.nii.gz", image)
        write_nifti(out / "labelsTr" / f"{case.case_id}.nii.gz", Volume(labels, case.image.grid))
        progress("exporting cases", number, len(cases))
    record = _description(names, codes, ignore if partly else None, cases)
    write_json(out / "dataset.json", record)
    return record


def _bits(dataset: Dataset, case: Case, names: Sequence[str], reader: str | None) -> Array:
    """(Z, Y, X) with bit k set where structure k is known to be."""
    bits = np.zeros(case.image.grid.shape_zyx, dtype=np.uint64)
    for k, name in enumerate(names):
        if case.state(name, reader) is State.CONTOURED:
            bits[dataset.load_mask(case, name, reader)] |= np.uint64(1 << k)
    return bits


def _order(bits: int) -> tuple[int, int]:
    """Single structures first, so that they keep their own code where nothing overlaps."""
    return bits.bit_count(), bits


def _labels(bits: Array, codes: dict[int, int]) -> Array:
    labels = np.zeros(bits.shape, dtype=np.uint8 if len(codes) < 254 else np.uint16)
    for combination, code in codes.items():
        labels[bits == np.uint64(combination)] = code
    return labels


def _description(
    names: Sequence[str], codes: dict[int, int], ignore: int | None, cases: Sequence[Case]
) -> dict[str, Any]:
    regions = {n: [code for bits, code in codes.items() if bits >> k & 1] for k, n in enumerate(names)}
    overlapping = any(bits.bit_count() > 1 for bits in codes)
    labels: dict[str, Any] = {"background": 0}
    # nnU-Net paints the regions in this order, each in one code: an inner one over what it lies in.
    for name, wanted in sorted(regions.items(), key=lambda region: -len(region[1]) if overlapping else 0):
        if wanted:
            labels[name] = wanted if len(wanted) > 1 else wanted[0]
    if ignore is not None:
        labels["ignore"] = ignore
    record: dict[str, Any] = {
        "channel_names": {"0": cases[0].image.modality},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    if overlapping:
        record["regions_class_order"] = [regions[name][0] for name in labels if name in regions]
    return record
