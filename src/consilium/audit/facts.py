"""What one case looks like, in numbers: one case at a time, so that memory does not grow with the archive."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from consilium.cases.case import Case, Finding, State
from consilium.cases.dataset import Dataset
from consilium.cases.draft import CaseDraft
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, Mask, Triple

BODY_HU = -300
AIR_RANGE_HU = (-1500, -200)
AIR_HU = (-1100, -850)
SOFT_RANGE_HU = (-200, 300)
PIECE_SHARE = 0.02
"""A piece of a structure counts if it holds at least this share of its voxels."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Of an image.

    Args:
        air_hu: Tenth percentile of what is darker than fat; NaN if there is too little of it.
        air_share: Share of −1100…−850 HU in what is darker than −300 HU and no padding; NaN if nothing is.
        soft_hu: Median of what is between fat and bone; NaN if there is too little of it.
        border_share: Share of the four in-plane borders that the body covers.
        blank_slices: Slices of one value between slices that are not.
        repeated_slices: Slices equal to the one before.
        body_centre_lps_mm: Centre of what is brighter than −300 HU; None if nothing is.
        body_size_lps_mm: Its extent along x, y and z.
    """

    air_hu: float
    air_share: float
    soft_hu: float
    border_share: float
    blank_slices: int
    repeated_slices: int
    body_centre_lps_mm: Triple | None
    body_size_lps_mm: Triple


@dataclass(frozen=True, kw_only=True)
class StructureFacts:
    """Of one reader's mask.

    Args:
        volume_cm3: 0 if empty.
        centre_lps_mm: None if empty.
        place: Centre relative to the body's: x and y in mm, z in body heights; None without a body.
        mean_hu: Inside; NaN if empty.
        pieces: Connected parts of at least 2 % of it.
        missing_slices: Slices without it between slices with it.
        in_air_share: Share of its voxels under −300 HU.
        at_border: Whether it touches an in-plane border of the image.
        sha256: Of the voxels.
    """

    structure: str
    reader: str
    volume_cm3: float
    centre_lps_mm: Triple | None
    place: Triple | None
    mean_hu: float
    pieces: int
    missing_slices: int
    in_air_share: float
    at_border: bool
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """Of a case, of a dataset or of a foreign archive.

    Args:
        case_id: How the page calls it; identifies nobody.
        patient: The same for cases of one patient; identifies nobody.
        modality: DICOM's word.
        grid: Of the image.
        content_sha256: Of the image's voxels.
        scanner: Facts from the importers' allow-list.
        findings: What the importer noticed.
        image, structures: What the voxels show.
        absent: Structures that are said not to be there, e.g. by an empty mask.
    """

    case_id: str
    patient: str
    modality: str
    grid: Grid
    content_sha256: str
    scanner: Mapping[str, str | float]
    findings: tuple[Finding, ...]
    image: ImageFacts
    structures: tuple[StructureFacts, ...]
    absent: tuple[str, ...] = ()


def compute_case_facts(dataset: Dataset, case: Case) -> CaseFacts:
    """Read a dataset's case: its image and masks, one at a time; what models propose does not count."""
    image = dataset.load_image(case)
    drawn = [a for a in case.annotations if not a.derived and not a.proposed]
    masks = {
        (a.structure, a.reader): lambda a=a: dataset.load_mask(case, a.structure, a.reader)
        for a in drawn
        if a.state is State.CONTOURED
    }
    image_facts, structures = _look(image, masks, {i.structure for i in case.instances})
    return CaseFacts(
        case_id=case.case_id,
        patient=case.patient_id,
        modality=case.image.modality,
        grid=case.image.grid,
        content_sha256=case.image.content_sha256,
        scanner=case.provenance.scanner,
        findings=case.findings,
        image=image_facts,
        structures=structures,
        absent=tuple(a.structure for a in drawn if a.state is State.ABSENT),
    )


def compute_draft_facts(draft: CaseDraft, *, case_id: str, patient: str) -> CaseFacts:
    """The facts of a case as an importer read it, without importing it."""
    masks = {
        (a.structure, a.reader): lambda m=a.mask: m() != 0
        for a in draft.annotations
        if a.mask is not None and not a.derived
    }
    image_facts, structures = _look(draft.image, masks, {i.structure for i in draft.instances})
    return CaseFacts(
        case_id=case_id,
        patient=patient,
        modality=draft.modality,
        grid=draft.image.grid,
        content_sha256=hashlib.sha256(np.ascontiguousarray(draft.image.array).data).hexdigest(),
        scanner=draft.scanner,
        findings=draft.findings,
        image=image_facts,
        structures=structures,
        absent=tuple(a.structure for a in draft.annotations if a.state is State.ABSENT and not a.derived),
    )


def _look(
    image: Volume, masks: Mapping[tuple[str, str], Callable[[], Mask]], several: Collection[str]
) -> tuple[ImageFacts, tuple[StructureFacts, ...]]:
    """The facts; structures of ``several`` things may be in pieces, with slices between them."""
    facts = compute_image_facts(image)
    structures = [compute_structure_facts(image, facts, of, load) for of, load in masks.items()]
    return facts, tuple(
        replace(s, pieces=1, missing_slices=0) if s.structure in several else s for s in structures
    )


def compute_image_facts(image: Volume) -> ImageFacts:
    """The facts of an image in Hounsfield units, in any orientation."""
    canonical, _ = image.to_canonical()
    array = canonical.array
    sample = array[:: max(1, array.shape[0] // 64), ::2, ::2]
    body = array > BODY_HU
    borders = [body[:, 0], body[:, -1], body[:, :, 0], body[:, :, -1]]
    flat = np.array([piece.min() == piece.max() for piece in array])
    inner = np.flatnonzero(~flat)
    blank = int(flat[inner[0] : inner[-1]].sum()) if inner.size else int(flat.size)
    same = [not flat[k] and np.array_equal(array[k], array[k - 1]) for k in range(1, len(array))]
    centre, size = _extent(body, canonical)
    return ImageFacts(
        air_hu=_percentile(sample, AIR_RANGE_HU, 10),
        air_share=_air_share(sample),
        soft_hu=_percentile(sample, SOFT_RANGE_HU, 50),
        border_share=float(np.mean([side.mean() for side in borders])),
        blank_slices=blank,
        repeated_slices=int(sum(same)),
        body_centre_lps_mm=centre,
        body_size_lps_mm=size,
    )


def compute_structure_facts(
    image: Volume, facts: ImageFacts, of: tuple[str, str], load: Callable[[], Mask]
) -> StructureFacts:
    """The facts of one mask; ``of`` is structure and reader."""
    mask = load()
    box = Box.around(mask)
    digest = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
    if box is None:
        return StructureFacts(
            structure=of[0],
            reader=of[1],
            volume_cm3=0.0,
            centre_lps_mm=None,
            place=None,
            mean_hu=float("nan"),
            pieces=0,
            missing_slices=0,
            in_air_share=0.0,
            at_border=False,
            sha256=digest,
        )
    part, values = mask[box.slices()], image.array[box.slices()]
    inside = values[part]
    index = np.argwhere(part).mean(axis=0) + np.asarray(box.start_zyx)
    x, y, z = (float(v) for v in image.grid.affine.to_points(index))
    labels, _ = ndimage.label(part, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    edges = [(a == 0 or b == n) for a, b, n in zip(box.start_zyx, box.stop_zyx, mask.shape, strict=True)]
    return StructureFacts(
        structure=of[0],
        reader=of[1],
        volume_cm3=float(part.sum()) * image.grid.voxel_volume_cm3,
        centre_lps_mm=(x, y, z),
        place=_place((x, y, z), facts),
        mean_hu=float(inside.mean()),
        pieces=int((sizes >= PIECE_SHARE * sizes.sum()).sum()),
        missing_slices=int((~part.any(axis=(1, 2))).sum()),
        in_air_share=float((inside < BODY_HU).mean()),
        at_border=any(edges[1:]),
        sha256=digest,
    )


def _percentile(sample: Array, bounds: tuple[int, int], percent: float) -> float:
    chosen = sample[(sample > bounds[0]) & (sample < bounds[1])]
    return float(np.percentile(chosen, percent)) if chosen.size > 0.005 * sample.size else float("nan")


def _air_share(sample: Array) -> float:
    dark = sample[(sample > AIR_RANGE_HU[0]) & (sample < BODY_HU)]
    return float(((dark >= AIR_HU[0]) & (dark <= AIR_HU[1])).mean()) if dark.size else float("nan")


def _extent(body: Mask, volume: Volume) -> tuple[Triple | None, Triple]:
    box = Box.around(body)
    if box is None:
        return None, (1.0, 1.0, 1.0)
    low, high = (volume.grid.affine.to_points(corner) for corner in (box.start_zyx, box.stop_zyx))
    x, y, z = (low + high) / 2
    a, b, c = np.maximum(np.abs(high - low), 1.0)
    return (float(x), float(y), float(z)), (float(a), float(b), float(c))


def _place(centre: Triple, facts: ImageFacts) -> Triple | None:
    if facts.body_centre_lps_mm is None:
        return None
    x, y, z = (c - b for c, b in zip(centre, facts.body_centre_lps_mm, strict=True))
    return x, y, z / facts.body_size_lps_mm[2]
