"""Find, then contour: a detector's candidates are segmented one by one at full resolution and merged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from consilium.errors import ConfigurationError
from consilium.geometry.crop import Box
from consilium.geometry.resample import resample
from consilium.geometry.volume import Volume
from consilium.inference.candidates import Candidate, DetectorDescription, find_candidates
from consilium.inference.model import Model
from consilium.inference.preprocess import AIR, map_to_grid, network_grid
from consilium.inference.whole_volume import predict_whole
from consilium.networks.detector import Detector
from consilium.types import Array, FloatArray, Mask, Progress, no_progress

LEAST_SCORE = 0.05
"""Candidates below it are not segmented."""

SAME_THING = 0.5
"""A contour of which so much was already given to a surer one is that one again."""

_NEAR_MM = 4.0


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A detector and the network that contours its candidates, ready for use.

    Args:
        detector: In evaluation mode, where the segmenter is.
        description: Of the detector.
        segmenter: Contours the one thing in the middle of its window.
        digest: Of the file it was read from.
        card: What a person should know before using it; JSON-able.

    Raises:
        ConfigurationError: The segmenter contours another structure, several, or has no window.
    """

    detector: Detector
    description: DetectorDescription
    segmenter: Model
    digest: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structure(self) -> str:
        """What it finds."""
        return self.description.structure

    def __post_init__(self) -> None:
        if self.segmenter.structures != (self.description.structure,):
            raise ConfigurationError(
                f"cascade: both networks must be of one structure; got {self.description.structure!r} and "
                f"{self.segmenter.structures}."
            )
        if self.segmenter.description.window_zyx is None:
            raise ConfigurationError("cascade: the segmenter must have the window it was trained on.")


@dataclass(frozen=True, kw_only=True)
class FoundInstance:
    """One contoured thing.

    Attributes:
        number: From 1, the surest first; the value of its voxels.
        candidate: Where the detector saw it.
        confidence: In [0, 1]: the detector's score times the mean probability inside the contour.
        voxels: In its contour.
        volume_cm3: Of its contour.
    """

    number: int
    candidate: Candidate
    confidence: float
    voxels: int
    volume_cm3: float


@dataclass(frozen=True, kw_only=True)
class CascadeResult:
    """What was found in an image; nothing is a legal answer.

    Attributes:
        structure: What was looked for.
        labels: (Z, Y, X) uint16 on the image's grid: the number of the instance.
        instances: The surest first.
        candidates: What the detector gave, the surest first; most of them are dropped.
    """

    structure: str
    labels: Array
    instances: tuple[FoundInstance, ...]
    candidates: tuple[Candidate, ...]

    @property
    def sentence(self) -> str:
        """What to tell a person."""
        if not self.instances:
            return f"{self.structure}: none found (candidates looked at: {len(self.candidates)})."
        surest = self.instances[0].confidence
        return f"{self.structure}: {len(self.instances)} found, the surest with confidence {surest:.2f}."

    def mask(self, number: int) -> Mask:
        """The contour of one instance: bool (Z, Y, X)."""
        return np.asarray(self.labels == number)


def contour_instances(
    cascade: Cascade,
    volume: Volume,
    *,
    least_confidence: float = 0.1,
    progress: Progress = no_progress,
) -> CascadeResult:
    """Detect in the whole image, contour each candidate, merge.

    A voxel belongs to the surest instance that claims it. A candidate without a contour is dropped, and so is
    one whose contour was mostly given to a surer one already.

    Args:
        cascade: The two networks.
        volume: In Hounsfield units for CT, any orientation.
        least_confidence: Instances below it are left out.
        progress: Told after each candidate.
    """
    candidates = find_candidates(
        cascade.detector,
        cascade.description,
        volume,
        least_score=LEAST_SCORE,
        device=cascade.segmenter.device,
    )
    segmented = []
    for k, candidate in enumerate(candidates):
        part = _segment(cascade.segmenter, candidate, volume)
        if part is not None and part[2] * candidate.score >= least_confidence:
            segmented.append((candidate, part))
        progress("contouring candidates", k + 1, len(candidates))
    segmented.sort(key=lambda found: -found[0].score * found[1][2])
    labels = np.zeros(volume.grid.shape_zyx, np.uint16)
    instances: list[FoundInstance] = []
    for candidate, (box, mask, sureness) in segmented:
        window = labels[box.slices()]
        free = mask & (window == 0)
        voxels = int(np.count_nonzero(free))
        if voxels < (1 - SAME_THING) * np.count_nonzero(mask) or not voxels:
            continue
        number = len(instances) + 1
        window[free] = number
        instances.append(
            FoundInstance(
                number=number,
                candidate=candidate,
                confidence=candidate.score * sureness,
                voxels=voxels,
                volume_cm3=voxels * volume.grid.voxel_volume_cm3,
            )
        )
    return CascadeResult(
        structure=cascade.description.structure,
        labels=labels,
        instances=tuple(instances),
        candidates=tuple(candidates),
    )


def _segment(model: Model, candidate: Candidate, volume: Volume) -> tuple[Box, Mask, float] | None:
    """The contour of one candidate: where in the image, the mask there, and the mean probability inside it.

    None where the network sees nothing near the candidate.
    """
    window = model.description.window_zyx
    assert window is not None, "a cascade's segmenter has a window"
    whole = network_grid(volume.grid, model.preprocessing.spacing_zyx_mm)
    index = whole.affine.to_indices(candidate.centre_lps_mm)
    grid = whole.cropped(Box.centred((float(index[0]), float(index[1]), float(index[2])), window))
    box = _covering(volume, grid.affine.to_points(_corners(window)))
    if box is None:
        return None
    source = volume.cropped(box)
    patch = resample(source, grid, fill=AIR, antialias=True)
    image = np.clip(np.rint(patch.array), -32768, 32767).astype(np.int16)
    probability: FloatArray = predict_whole(model, image)[0]
    inside = _component_near(probability >= 0.5, np.array(window) / 2 - 0.5, candidate, grid.spacing_zyx_mm)
    if inside is None:
        return None
    sureness = float(probability[inside].mean())
    mask = map_to_grid(Volume(np.where(inside, probability, 0).astype(np.float32), grid), source.grid)
    return box, mask, sureness


def _component_near(
    mask: Mask, centre_zyx: FloatArray, candidate: Candidate, spacing_zyx_mm: tuple[float, float, float]
) -> Mask | None:
    """The connected part of a mask that is nearest to the middle; None if none is within the radius."""
    labels, count = ndimage.label(mask)
    if not count:
        return None
    points = np.argwhere(mask)
    distances = np.linalg.norm((points - centre_zyx) * spacing_zyx_mm, axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] > max(candidate.diameter_mm / 2, _NEAR_MM):
        return None
    return np.asarray(labels == labels[tuple(points[nearest])])


def _covering(volume: Volume, points_lps_mm: FloatArray) -> Box | None:
    """The box of the image that holds points, four voxels larger, cut to the image; None if outside."""
    index = volume.grid.affine.to_indices(points_lps_mm)
    low = np.maximum(np.floor(index.min(axis=0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 5, volume.grid.shape_zyx)
    if (high <= low).any():
        return None
    return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))


def _corners(shape_zyx: tuple[int, int, int]) -> Array:
    top = np.array(shape_zyx) - 1
    corners: Array = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3) * top
    return corners
