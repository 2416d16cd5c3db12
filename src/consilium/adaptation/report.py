"""What changed since the planning day, per structure, and which contours a person must check and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from consilium.adaptation.images import PreparedImage
from consilium.adaptation.register import Registration
from consilium.geometry.volume import Grid, Volume
from consilium.inference.preprocess import map_to_grid
from consilium.metrics.comparison import compare_masks
from consilium.types import FloatArray, Mask

TOLERANCE_MM = 2.0
SHELL_MM = 5.0
"""Image and deformation are judged inside a structure and within so much of it."""

VOLUME_RANGE = (0.7, 1.4)
LARGEST_SHIFT_MM = 15.0
LARGEST_GREY_DIFFERENCE = 0.6
"""Mean absolute difference between the warped planning CT and the repeat CT, in 100 HU of soft tissue."""

GAS_CM3 = 1.0
STRONG_JACOBIAN = (0.3, 3.0)
LEAST_AGREEMENT = 0.6
"""Surface Dice at 2 mm between the refined and the propagated contour."""

TARGETS = ("GTV", "CTV", "PTV", "ITV", "IGTV", "ICTV")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Why a person must check a contour: a stable word and a sentence with values and units."""

    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StructureChange:
    """What is known of one structure on both days.

    Args:
        structure: Name.
        source: ``"propagated"``, ``"refined"`` (by a network for adaptation) or ``"fused"`` (with a
            contouring network).
        planning_volume_cm3, volume_cm3: Of both days.
        shift_lps_mm: Of the centre of mass beyond the rigid movement; NaN if a mask is empty.
        surface_distance_mm: Mean distance between the contour and the rigidly moved planning contour.
        surface_distance_95_mm: Its 95th percentile.
        jacobian_range: Smallest and largest growth of tissue inside (repeat volume per planning volume); of
            the deformation, not of the network.
        folded_voxels: Of the deformation's grid, within `SHELL_MM` of the structure.
        grey_difference: See `LARGEST_GREY_DIFFERENCE`.
        gas_cm3: Bowel gas inside on the planning day (warped) and on the repeat day.
        agreement: Surface Dice at 2 mm between final and propagated contour; 1 where nothing was refined.
        flags: Why to check; none: no reason was found, which is no approval.
    """

    structure: str
    source: str
    planning_volume_cm3: float
    volume_cm3: float
    shift_lps_mm: tuple[float, float, float]
    surface_distance_mm: float
    surface_distance_95_mm: float
    jacobian_range: tuple[float, float]
    folded_voxels: int
    grey_difference: float
    gas_cm3: tuple[float, float]
    agreement: float
    flags: tuple[Flag, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able; what is no finite number is None."""
        record = asdict(self)
        record["flags"] = [dict(vars(flag)) for flag in self.flags]
        return {key: _plain(value) for key, value in record.items()}


@dataclass(frozen=True, eq=False)
class DayMasks:
    """One structure on the repeat CT's grid, whose contour is judged.

    Args:
        structure: Name.
        final: The contour that is given out.
        propagated: By the deformation alone.
        rigid: By the rigid movement alone: where it would be if nothing had changed.
        planning_volume_cm3: On the planning day.
        is_cut: Whether the planning contour was cut by the planning CT's border.
        source: See `StructureChange`.
    """

    structure: str
    final: Mask
    propagated: Mask
    rigid: Mask
    planning_volume_cm3: float
    is_cut: bool
    source: str


class ChangeMeter:
    """Compares both days structure by structure.

    Args:
        registration: Between the two CT.
        grid: The repeat CT's own.
    """

    def __init__(self, registration: Registration, grid: Grid) -> None:
        self._grid = grid
        self._own = registration.deformation.grid
        self._jacobian = registration.deformation.jacobian
        self._difference, self._gas = _warped_difference(registration)
        self._repeat_gas = registration.repeat.gas
        self._seen = registration.repeat.seen

    @property
    def jacobian(self) -> FloatArray:
        """See `Deformation.jacobian`."""
        return self._jacobian

    def measure(self, masks: DayMasks) -> StructureChange:
        """Every figure of one structure, with its flags."""
        spacing = self._grid.spacing_zyx_mm
        moved = compare_masks(masks.rigid, masks.final, spacing, tolerance_mm=TOLERANCE_MM)
        agreement = 1.0
        if masks.source != "propagated":
            both = compare_masks(masks.propagated, masks.final, spacing, tolerance_mm=TOLERANCE_MM)
            agreement = both.surface_dice
        inside = map_to_grid(Volume(masks.final.astype(np.float32), self._grid), self._own)
        around = _grown(inside, self._own)
        growth = 1 / np.maximum(self._jacobian[around], 1e-3) if around.any() else np.array([np.nan])
        voxel = self._own.voxel_volume_cm3
        figures: dict[str, Any] = {
            "structure": masks.structure,
            "source": masks.source,
            "planning_volume_cm3": masks.planning_volume_cm3,
            "volume_cm3": float(np.count_nonzero(masks.final)) * self._grid.voxel_volume_cm3,
            "shift_lps_mm": _shift(masks.rigid, masks.final, self._grid),
            "surface_distance_mm": moved.mean_surface_distance_mm,
            "surface_distance_95_mm": moved.hd95_mm,
            "jacobian_range": (float(growth.min()), float(growth.max())),
            "folded_voxels": int(np.count_nonzero(self._jacobian[around] <= 0)),
            "grey_difference": float(np.nanmean(self._difference[around])) if around.any() else float("nan"),
            "gas_cm3": (
                float(np.count_nonzero(self._gas & inside)) * voxel,
                float(np.count_nonzero(self._repeat_gas & inside)) * voxel,
            ),
            "agreement": agreement,
        }
        return StructureChange(
            **figures, flags=tuple(find_flags(figures, is_cut=masks.is_cut or is_cut(masks.final)))
        )


def find_flags(figures: Mapping[str, Any], *, is_cut: bool) -> list[Flag]:
    """Every reason to check one structure."""
    before, after = figures["planning_volume_cm3"], figures["volume_cm3"]
    if not after:
        return [Flag(code="lost", reason="Nothing of it lies in the repeat CT: is it outside the scan?")]
    found: list[Flag] = []

    def add(is_so: bool, code: str, reason: str) -> None:
        if is_so:
            found.append(Flag(code=code, reason=reason))

    add(
        str(figures["structure"]).upper().startswith(TARGETS),
        "target",
        "A target: whether it still covers the tumour is an oncologist's decision.",
    )
    add(is_cut, "cut", "It meets the edge of an image: a part of it may lie outside the scan.")
    add(
        not VOLUME_RANGE[0] <= after / before <= VOLUME_RANGE[1],
        "volume",
        f"Its volume went from {before:.3g} to {after:.3g} cm³ ({after / before - 1:+.0%}).",
    )
    shift = float(np.linalg.norm(figures["shift_lps_mm"]))
    add(shift > LARGEST_SHIFT_MM, "shift", f"Its centre moved by {shift:.0f} mm.")
    folds, (low, high) = figures["folded_voxels"], figures["jacobian_range"]
    add(folds > 0, "folded", f"The deformation folds in {folds} voxels in or near it.")
    add(
        low < STRONG_JACOBIAN[0] or high > STRONG_JACOBIAN[1],
        "strain",
        f"Tissue in or near it would have changed its volume by factors of {low:.2g} to {high:.2g}.",
    )
    difference = figures["grey_difference"]
    add(
        difference > LARGEST_GREY_DIFFERENCE,
        "unlike",
        f"The images still differ there by {100 * difference:.0f} HU of soft tissue after the deformation.",
    )
    then, now = figures["gas_cm3"]
    add(
        abs(then - now) > GAS_CM3, "gas", f"Gas in it: {then:.1f} cm³ on the planning day, {now:.1f} cm³ now."
    )
    agreement = figures["agreement"]
    add(
        agreement < LEAST_AGREEMENT,
        "disagree",
        f"Network and deformation disagree: {agreement:.0%} of their surfaces lie within 2 mm.",
    )
    return found


def _warped_difference(registration: Registration) -> tuple[FloatArray, Mask]:
    """Absolute grey difference after the deformation, NaN where an image ends, and the warped gas."""
    deformation, planning, repeat = registration.deformation, registration.planning, registration.repeat
    # The prepared planning image has been moved rigidly already.
    only = type(deformation)(deformation.displacement_lps_mm, deformation.grid, np.eye(4))

    def warped(array: FloatArray) -> FloatArray:
        return only.warp(Volume(array, planning.grid), deformation.grid, fill=0.0).array

    difference = np.abs(warped(planning.grey) - repeat.grey)
    seen = (warped(planning.seen.astype(np.float32)) > 0.5) & repeat.seen
    difference[~seen] = np.nan
    return difference, np.asarray(warped(planning.gas.astype(np.float32)) > 0.5)


def _grown(mask: Mask, grid: Grid) -> Mask:
    size = tuple(2 * max(1, round(SHELL_MM / s)) + 1 for s in grid.spacing_zyx_mm)
    return np.asarray(ndimage.maximum_filter(mask.view(np.uint8), size=size)).view(np.bool_)


def is_cut(mask: Mask) -> bool:
    """Whether a mask meets the edge of its grid."""
    return any(bool(np.take(mask, side, axis=axis).any()) for axis in range(3) for side in (0, -1))


def _shift(before: Mask, after: Mask, grid: Grid) -> tuple[float, float, float]:
    if not before.any() or not after.any():
        return float("nan"), float("nan"), float("nan")
    centres = [grid.affine.to_points(_centre_index(mask)) for mask in (before, after)]
    x, y, z = (float(v) for v in centres[1] - centres[0])
    return x, y, z


def _centre_index(mask: Mask) -> FloatArray:
    sums = [np.count_nonzero(mask, axis=tuple(k for k in range(3) if k != axis)) for axis in range(3)]
    return np.array([np.average(np.arange(len(s)), weights=s) for s in map(np.asarray, sums)])


def overall(registration: Registration) -> dict[str, Any]:
    """The deformation as a whole: growth and displacement inside the body, folds, the rigid movement."""
    body = registration.repeat.body & registration.repeat.seen
    jacobian = registration.deformation.jacobian
    inside = jacobian[body] if body.any() else jacobian.reshape(-1)
    size = np.linalg.norm(registration.deformation.displacement_lps_mm, axis=0)[body]
    rigid = registration.deformation.rigid
    angle = np.rad2deg(np.arccos(np.clip((np.trace(rigid[:3, :3]) - 1) / 2, -1, 1)))
    return {
        "growth_range": [1 / max(float(inside.max()), 1e-3), 1 / max(float(inside.min()), 1e-3)],
        "folded_voxels": int(np.count_nonzero(inside <= 0)),
        "displacement_median_mm": float(np.median(size)) if size.size else 0.0,
        "displacement_99_mm": float(np.percentile(size, 99)) if size.size else 0.0,
        "turn_deg": float(angle),
        "rigid_lps": rigid.tolist(),
        "grid_spacing_zyx_mm": list(registration.deformation.grid.spacing_zyx_mm),
        "overlap": _overlap(registration.planning, registration.repeat),
    }


def _overlap(planning: PreparedImage, repeat: PreparedImage) -> float:
    """Share of the repeat CT's body that the planning CT shows."""
    body = repeat.body
    return int(np.count_nonzero(planning.seen & body)) / max(1, int(np.count_nonzero(body)))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
