"""From an image as it is to what the network sees, and from the network's grid back to the image's."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from consilium.errors import ConfigurationError, DataError
from consilium.geometry.crop import Box, put_back
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray, Mask, Shape, Triple

AIR = -1000
"""What lies outside the image: air in Hounsfield units, the lowest value after percentile scaling."""

CT_WINDOWS = ((-1000.0, 1000.0), (-160.0, 240.0))
"""Everything, and soft tissue in fine steps: one channel each."""

OTHER_WINDOWS = ((-1000.0, 1000.0),)
PRIOR_REACH_MM = 9.0
"""How far from an earlier surface a network for adaptation is told its distance."""

PRIOR_SOFTNESS_MM = 1.5
"""So far inside an earlier contour its odds are e to 1."""

SAME_SPACING = 0.01
BODY_ABOVE = -500
BODY_STEP_MM = 4.0
SMALLEST_PART_OF_BODY = 0.05
INTENSITIES = ("hounsfield", "percentile")
CROPS = ("none", "body")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to every image before the network sees it; the same in training and use.

    The image is turned to Z Superior, Y Posterior, X Left, resampled to ``spacing_zyx_mm`` (smoothed first
    along axes that get coarser), rounded to integers, cropped, and cut into windows that become channels.

    Args:
        spacing_zyx_mm: Of the network's grid; an axis within 1 % of it keeps its own.
        windows: One (low, high) per channel: scaled so that low is -1 and high is 1, and clipped there.
        intensity: ``"hounsfield"`` takes the values as they are; ``"percentile"`` first maps the image's
            0.5th and 99.5th percentile to -1000 and 1000, for images without a fixed scale (MR).
        crop: ``"body"`` cuts to what is not air, with a margin; ``"none"`` keeps everything.
        margin_mm: Around the body.

    Raises:
        ConfigurationError: A field out of its range.
    """

    spacing_zyx_mm: Triple
    windows: tuple[tuple[float, float], ...] = CT_WINDOWS
    intensity: str = "hounsfield"
    crop: str = "none"
    margin_mm: float = 10.0

    def __post_init__(self) -> None:
        spacing = tuple(float(s) for s in self.spacing_zyx_mm)
        windows = tuple((float(low), float(high)) for low, high in self.windows)
        object.__setattr__(self, "spacing_zyx_mm", spacing)
        object.__setattr__(self, "windows", windows)
        if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ConfigurationError(f"preprocessing: spacing must be three positive mm; got {spacing}.")
        if not windows or not all(math.isfinite(w) for pair in windows for w in pair):
            raise ConfigurationError(f"preprocessing: windows must be finite, at least one; got {windows}.")
        if any(low >= high for low, high in windows):
            raise ConfigurationError(f"preprocessing: a window's low must lie below its high; got {windows}.")
        if self.intensity not in INTENSITIES or self.crop not in CROPS:
            raise ConfigurationError(
                f"preprocessing: intensity must be one of {INTENSITIES} and crop one of {CROPS}; "
                f"got {self.intensity!r} and {self.crop!r}."
            )
        if not 0 <= self.margin_mm < 1000:
            raise ConfigurationError(
                f"preprocessing: margin_mm must be in [0, 1000); got {self.margin_mm} mm."
            )

    @property
    def channels(self) -> int:
        """Image channels of the network."""
        return len(self.windows)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        record = asdict(self)
        record["spacing_zyx_mm"] = list(self.spacing_zyx_mm)
        record["windows"] = [list(window) for window in self.windows]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: A field is missing, unknown or out of its range.
        """
        try:
            return cls(**dict(record))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"preprocessing: a field is missing or unknown: {error}.") from error


def network_grid(grid: Grid, spacing_zyx_mm: Triple) -> Grid:
    """The grid that an image on ``grid`` is resampled to: canonical axes, the wanted spacing, uncropped."""
    canonical, _ = grid.to_canonical()
    near = [
        have if abs(have / want - 1) <= SAME_SPACING else want
        for have, want in zip(canonical.spacing_zyx_mm, spacing_zyx_mm, strict=True)
    ]
    spacing = (near[0], near[1], near[2])
    return canonical if spacing == canonical.spacing_zyx_mm else canonical.resampled(spacing)


def prepare_image(volume: Volume, preprocessing: Preprocessing) -> Volume:
    """The image on the network's grid: int16 (Z, Y, X), resampled and cropped, not yet windowed.

    Raises:
        DataError: The image holds NaN or infinity.
    """
    canonical, _ = volume.to_canonical()
    if np.issubdtype(canonical.array.dtype, np.floating) and not np.isfinite(canonical.array).all():
        raise DataError("image: every voxel must be finite; found NaN or infinity. Export the image again.")
    canonical = Volume(_scaled(canonical.array, preprocessing.intensity), canonical.grid)
    grid = network_grid(volume.grid, preprocessing.spacing_zyx_mm)
    resampled = resample(canonical, grid, fill=AIR, antialias=True)
    array = resampled.array
    if array.dtype != np.int16:
        array = np.clip(np.rint(array), -32768, 32767).astype(np.int16)
    result = Volume(np.ascontiguousarray(array), grid)
    if preprocessing.crop == "body":
        result = result.cropped(find_body(result, preprocessing.margin_mm))
    return Volume(np.ascontiguousarray(result.array), result.grid)


def prepare_mask(mask: Mask, grid: Grid, target: Grid) -> Mask:
    """A mask on ``grid`` on the network's grid: where its linear interpolation reaches one half."""
    return map_to_grid(Volume(mask.astype(np.float32), grid), target)


def map_to_grid(probability: Volume, grid: Grid, *, threshold: float = 0.5) -> Mask:
    """Where a probability, interpolated linearly, reaches ``threshold``: bool (Z, Y, X) on ``grid``.

    Only the part of ``grid`` that can be inside is interpolated, so a small structure in a large
    image is cheap. Outside ``probability`` nothing is inside.
    """
    box = Box.around(probability.array >= threshold)
    if box is None:
        return np.zeros(grid.shape_zyx, dtype=np.bool_)
    source = probability.cropped(box.grown((1, 1, 1)).clipped(probability.grid.shape_zyx))
    target = _box_in(source.grid, grid)
    if target is None:
        return np.zeros(grid.shape_zyx, dtype=np.bool_)
    # Beyond its outermost centres `resample` repeats the edge: right at the image's border, and at the cut
    # everything is below the threshold.
    part = resample(source, grid.cropped(target), fill=0.0)
    inside: Mask = put_back(np.asarray(part.array >= threshold), target, grid.shape_zyx, fill=0)
    return inside


def to_channels(image: Tensor, windows: tuple[tuple[float, float], ...]) -> Tensor:
    """Windows of an image (Z, Y, X) as float32 channels (C, Z, Y, X) in [-1, 1]."""
    value = image.to(torch.float32)
    channels = [((value - (low + high) / 2) * (2 / (high - low))).clamp_(-1.0, 1.0) for low, high in windows]
    return torch.stack(channels)


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of a patient from an earlier day, on the network's grid of today's image.

    Args:
        image: (Z, Y, X): the earlier image, laid on today's.
        depth_mm: (S, Z, Y, X) float32: how deep each voxel lies in the earlier structures, likewise; see
            `depth_in`. ``-PRIOR_REACH_MM`` throughout where one was not drawn.
    """

    image: Array
    depth_mm: FloatArray


def depth_in(mask: Mask, spacing_zyx_mm: Triple) -> FloatArray:
    """Distance to a mask's surface in mm, positive inside, no more than ``PRIOR_REACH_MM`` either way.

    Args:
        mask: (Z, Y, X) bool; an empty one is out of reach everywhere.
        spacing_zyx_mm: Of its voxels, whose faces are the surface.

    Returns:
        (Z, Y, X) float32.
    """
    depth = np.full(mask.shape, -PRIOR_REACH_MM, dtype=np.float32)
    box = Box.around(mask)
    if box is None:
        return depth
    z, y, x = (math.ceil(PRIOR_REACH_MM / s) + 1 for s in spacing_zyx_mm)
    near = box.grown((z, y, x)).clipped((mask.shape[0], mask.shape[1], mask.shape[2])).slices()
    inside = mask[near]
    own = ndimage.distance_transform_edt(inside, sampling=spacing_zyx_mm)
    other = ndimage.distance_transform_edt(~inside, sampling=spacing_zyx_mm)
    half = min(spacing_zyx_mm) / 2
    signed = np.where(inside, own - half, half - other)
    if inside.all():
        signed[:] = PRIOR_REACH_MM
    depth[near] = np.clip(signed, -PRIOR_REACH_MM, PRIOR_REACH_MM)
    return depth


def to_prior_channels(prior: Prior, windows: tuple[tuple[float, float], ...]) -> Tensor:
    """The channels (C + S, Z, Y, X) that stand behind the image's own: earlier image, then structures."""
    image = to_channels(torch.from_numpy(np.ascontiguousarray(prior.image)), windows)
    depth = torch.from_numpy(np.ascontiguousarray(prior.depth_mm, dtype=np.float32))
    return torch.cat([image, depth / PRIOR_REACH_MM])


def prior_logits(channels: Tensor, structures: int) -> Tensor:
    """What a network for adaptation adds to: the logits (B, S, Z, Y, X) of the earlier structures alone.

    So a network that says nothing leaves the earlier contours where they are, and one learns only by how
    much they are to move.

    Args:
        channels: (B, C, Z, Y, X): all that the network sees.
        structures: Number S.
    """
    return channels[:, -structures:] * (PRIOR_REACH_MM / PRIOR_SOFTNESS_MM)


def find_body(volume: Volume, margin_mm: float) -> Box:
    """The box around everything that is not air; the whole image where all of it is.

    Parts smaller than a twentieth of the largest are left out; two legs are two parts, and both stay.
    """
    spacing = volume.grid.spacing_zyx_mm
    z, y, x = (max(1, round(BODY_STEP_MM / s)) for s in spacing)
    coarse = np.asarray(volume.array[::z, ::y, ::x] > BODY_ABOVE)
    labels, count = ndimage.label(coarse)
    if not count:
        return Box((0, 0, 0), volume.grid.shape_zyx)
    sizes = np.bincount(labels.reshape(-1))[1:]
    kept = np.flatnonzero(sizes >= SMALLEST_PART_OF_BODY * sizes.max()) + 1
    box = Box.around(np.isin(labels, kept))
    assert box is not None
    start = [a * step for a, step in zip(box.start_zyx, (z, y, x), strict=True)]
    stop = [b * step for b, step in zip(box.stop_zyx, (z, y, x), strict=True)]
    margin = [math.ceil(margin_mm / s) for s in spacing]
    full = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return full.grown((margin[0], margin[1], margin[2])).clipped(volume.grid.shape_zyx)


def _scaled(array: Array, intensity: str) -> Array:
    if intensity == "hounsfield":
        return array
    low, high = (float(v) for v in np.percentile(array, [0.5, 99.5]))
    if high <= low:
        return np.zeros(array.shape, dtype=np.int16)
    scaled: FloatArray = (array.astype(np.float32) - low) * (2000.0 / (high - low)) - 1000.0
    return scaled


def _box_in(source: Grid, target: Grid) -> Box | None:
    """The box of ``target`` that ``source`` (its voxels' outer faces included) can reach; None if none."""
    top = np.asarray(source.shape_zyx) - 1
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    index = target.affine.to_indices(source.affine.to_points(corners * (top + 1.0) - 0.5))
    low = np.maximum(np.floor(index.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1, target.shape_zyx)
    if (high <= low).any():
        return None
    start: Shape = (int(low[0]), int(low[1]), int(low[2]))
    return Box(start, (int(high[0]), int(high[1]), int(high[2])))
