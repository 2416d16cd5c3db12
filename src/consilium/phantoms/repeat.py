"""A phantom pelvis on another day: bladder and rectum changed by a deformation that is known on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.phantoms.organs import Organ, paint_at
from consilium.phantoms.pelvis import AIR_HU, Hospital, PhantomPatient, scan_image
from consilium.types import FloatArray, Mask, Triple

FADE = 1.6
"""Beyond its organ a change fades out over this share of the organ's larger radius of the two days."""


MOST_EMPTIED = 0.6
"""An organ's wall comes in by at most this share of its half axis; with more, the field would fold."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """One organ that grows or shrinks: affine inside, fading outside.

    Inside the organ of the repeat day, ``planning = planning_centre + (point - centre) / factors``, so its
    new volume is the old one times the product of the factors. In a tube the change also fades along z, and
    only the middle slice has the full factor.

    Args:
        organ: As it is in the planning CT.
        factors: Of its half axes (x, y, z); positive.
        centre_lps_mm: Where its centre goes.
        along_mm: In a tube, half the length that changes.
    """

    organ: Organ
    factors: Triple
    centre_lps_mm: Triple
    along_mm: float = 0.0

    def __post_init__(self) -> None:
        if min(self.factors) <= 0 or (self.organ.is_tube and self.along_mm <= 0):
            raise GeometryError(
                f"{self.organ.structure}: factors must be positive and a tube's length given; got "
                f"{self.factors} and {self.along_mm} mm."
            )

    def to_planning(self, points: FloatArray) -> FloatArray:
        """Points (..., 3) of the repeat day in the planning CT."""
        radii = np.asarray(self.organ.radii_lps_mm) * self.factors
        offset: FloatArray = points - np.asarray(self.centre_lps_mm)
        relative = offset / radii
        fade = FADE * max(1.0, *(1 / factor for factor in self.factors))
        if self.organ.is_tube:
            # Ripples and bend carry the wall a little beyond the ellipse.
            reach = np.hypot(relative[..., 0], relative[..., 1]) / 1.25
            along = np.abs(offset[..., 2]) / self.along_mm
            weight: FloatArray = np.asarray(_fading(reach, fade) * _bump(along))
        else:
            weight = _fading(np.linalg.norm(relative, axis=-1) / 1.1, fade)
        inside = np.asarray(self.organ.centre_lps_mm) + offset / np.asarray(self.factors)
        return np.asarray(points + weight[..., None] * (inside - points))


@dataclass(frozen=True, kw_only=True)
class Posture:
    """A smooth change of the whole region: a sum of waves.

    Args:
        waves: Each a direction and amplitude (mm), a wave vector (1/mm) and a phase, (x, y, z) each.
    """

    waves: tuple[tuple[Triple, Triple, float], ...] = ()

    def to_planning(self, points: FloatArray) -> FloatArray:
        """Points (..., 3) of the repeat day in the planning CT."""
        moved: FloatArray = np.array(points, dtype=np.float64)
        for amplitude, vector, phase in self.waves:
            moved += np.sin(points @ np.asarray(vector) + phase)[..., None] * np.asarray(amplitude)
        return moved


@dataclass(frozen=True, kw_only=True)
class KnownChange:
    """Everything between the planning CT and the repeat CT.

    A point of the repeat CT goes back through the set-up, the posture and each filling, in this order.

    Args:
        setup: (4, 4), rigid: from a point of the repeat CT to the planning CT's frame.
        posture: Smooth change of the whole region.
        fillings: Organs that grew or shrank.
        gas: The gas of the repeat day, in the planning CT's place; None: there is none.
    """

    setup: FloatArray = field(default_factory=lambda: np.eye(4))
    posture: Posture = field(default_factory=Posture)
    fillings: tuple[Filling, ...] = ()
    gas: Organ | None = None

    def to_planning(self, points_lps_mm: FloatArray) -> FloatArray:
        """Points (..., 3) of the repeat CT in the planning CT: the truth that a registration looks for."""
        points: FloatArray = points_lps_mm @ self.setup[:3, :3].T + self.setup[:3, 3]
        points = self.posture.to_planning(points)
        for filling in self.fillings:
            points = filling.to_planning(points)
        return points


@dataclass(frozen=True, kw_only=True)
class RepeatPatient:
    """A phantom patient on the repeat day.

    Args:
        image: The repeat CT, int16 in Hounsfield units.
        masks: Structure -> where it is on the repeat CT's grid, by its closed form.
        change: How it came about.
    """

    image: Volume
    masks: Mapping[str, Mask]
    change: KnownChange


def choose_change(patient: PhantomPatient, amount_mm: float, *, rng: np.random.Generator) -> KnownChange:
    """A bladder whose dome moves by ``amount_mm``, a rectum whose wall moves by half of it, and a new set-up.

    Both directions occur: filling and emptying, gas that comes and gas that goes.

    Args:
        patient: On the planning day.
        amount_mm: Of the largest movement, 0 to 15 mm; 0 leaves everything but the set-up and the noise.
        rng: Source of directions.
    """
    if not 0 <= amount_mm <= 15:
        raise GeometryError(f"change: the amount must be in [0, 15] mm; got {amount_mm}.")
    bladder, rectum = patient.organs["Bladder"], patient.organs["Rectum"]
    # A bladder that is too small to give so much fills instead.
    empties = rng.random() < 0.5 and amount_mm <= MOST_EMPTIED * bladder.radii_lps_mm[2]
    sign = -1.0 if empties else 1.0
    fills = _filled_bladder(bladder, sign * amount_mm)
    least = -MOST_EMPTIED / 2 * min(rectum.radii_lps_mm[:2])
    wall_mm = 0.5 * amount_mm if rng.random() < 0.5 else max(-0.3 * amount_mm, least)
    distends = _distended_rectum(rectum, wall_mm, rng)
    grows = distends.factors[0] > 1
    gas = next((layer for layer in patient.layers if layer.structure == "RectumGas"), None)
    if gas is not None and amount_mm > 0:
        radii = gas.radii_lps_mm
        level = distends.centre_lps_mm[2]
        bent = rectum.bend_mm * np.sin(np.pi * (level - rectum.centre_lps_mm[2]) / rectum.radii_lps_mm[2])
        place = (rectum.centre_lps_mm[0], rectum.centre_lps_mm[1] + float(bent), level)
        inside = min(*rectum.radii_lps_mm[:2])
        gas = (
            replace(gas, centre_lps_mm=place, radii_lps_mm=(0.7 * inside, 0.7 * inside, 1.6 * radii[2]))
            if grows
            else None
        )
    waves = tuple(
        (
            _triple(rng.normal(0, 1, 3) * amount_mm / 12),
            _triple(rng.normal(0, 1, 3) * 2 * np.pi / 220),
            float(rng.uniform(0, 2 * np.pi)),
        )
        for _ in range(4)
    )
    return KnownChange(
        setup=_setup(np.deg2rad(rng.uniform(-2.5, 2.5, 3)), rng.uniform(-12, 12, 3), patient),
        posture=Posture(waves=waves),
        fillings=(fills, distends) if amount_mm else (),
        gas=gas,
    )


def build_repeat(
    patient: PhantomPatient,
    change: KnownChange,
    *,
    rng: np.random.Generator,
    hospital: Hospital | None = None,
) -> RepeatPatient:
    """Scan the changed patient, with noise of its own.

    Args:
        patient: On the planning day.
        change: What happened since.
        rng: Source of the noise.
        hospital: Whose scanner and grid; by default the planning CT's. The grid's middle shows what the
            planning CT's middle showed before any organ changed.
    """
    hospital = hospital or patient.hospital
    grid = _grid_around(patient, change, hospital)
    z, y, x = (np.arange(n) for n in grid.shape_zyx)
    index = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)
    points = change.to_planning(grid.affine.to_points(index))
    layers = [layer for layer in patient.layers if layer.structure != "RectumGas"]
    at = next(
        (k for k, layer in enumerate(patient.layers) if layer.structure == "RectumGas"), len(patient.layers)
    )
    if change.gas is not None:
        layers.insert(at, change.gas)
    image = np.full(grid.shape_zyx, AIR_HU)
    paint_at(image, layers, points, grid.spacing_zyx_mm[2])
    masks = {
        name: np.asarray(patient.organs[name].depth_mm(points[..., 0], points[..., 1], points[..., 2]) > 0)
        for name in patient.contours
    }
    return RepeatPatient(image=Volume(scan_image(image, hospital, rng), grid), masks=masks, change=change)


def _filled_bladder(bladder: Organ, dome_mm: float) -> Filling:
    """The floor stays, the dome moves by ``dome_mm``, the sides by half of it each."""
    x, y, z = bladder.radii_lps_mm
    factors = (1 + 0.4 * dome_mm / x, 1 + 0.4 * dome_mm / y, 1 + dome_mm / (2 * z))
    cx, cy, cz = bladder.centre_lps_mm
    return Filling(organ=bladder, factors=factors, centre_lps_mm=(cx, cy, cz + dome_mm / 2))


def _distended_rectum(rectum: Organ, wall_mm: float, rng: np.random.Generator) -> Filling:
    x, y, _ = rectum.radii_lps_mm
    cx, cy, cz = rectum.centre_lps_mm
    level = cz + float(rng.uniform(-10, 10))
    factors = (1 + wall_mm / x, 1 + wall_mm / y, 1.0)
    return Filling(organ=replace(rectum, centre_lps_mm=(cx, cy, level)), factors=factors,
                   centre_lps_mm=(cx, cy, level), along_mm=36.0)  # fmt: skip


def _setup(angles: FloatArray, shift_mm: FloatArray, patient: PhantomPatient) -> FloatArray:
    """Rigid, about the planning CT's middle."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    middle = _middle(patient.image.grid)
    matrix[:3, 3] = middle - matrix[:3, :3] @ (middle + shift_mm)
    return matrix


def _grid_around(patient: PhantomPatient, change: KnownChange, hospital: Hospital) -> Grid:
    middle = np.linalg.solve(change.setup, np.append(_middle(patient.image.grid), 1.0))[:3]
    half = (np.asarray(hospital.shape_zyx) - 1) / 2 * np.asarray(hospital.spacing_zyx_mm)
    origin = middle - half[::-1]
    return Grid(
        hospital.shape_zyx, Affine.from_spacing(hospital.spacing_zyx_mm, origin_lps_mm=_triple(origin))
    )


def _middle(grid: Grid) -> FloatArray:
    return grid.affine.to_points((np.asarray(grid.shape_zyx) - 1) / 2)


def _triple(values: FloatArray) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _fading(reach: FloatArray, fade: float) -> FloatArray:
    """1 up to 1, 0 from 1 + ``fade`` on, smooth between."""
    return _bump((reach - 1) / fade)


def _bump(along: FloatArray) -> FloatArray:
    """1 at 0 and before, 0 from 1 on, twice differentiable."""
    t = np.clip(along, 0, 1)
    return np.asarray(1 - t**3 * (10 - 15 * t + 6 * t**2))
