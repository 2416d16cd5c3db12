"""Phantom pelvis patients of several hospitals: image, polygons, and volumes known on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.phantoms.organs import Organ, Wave, paint
from consilium.types import Array, FloatArray, Shape, Triple

STRUCTURES = ("Bladder", "Rectum", "Prostate", "FemoralHead_L", "FemoralHead_R")
AIR_HU, FAT_HU, MUSCLE_HU = -1000.0, -95.0, 55.0


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How one hospital's CT look and what it contours.

    Args:
        name: Of the hospital.
        shape_zyx: Voxels.
        spacing_zyx_mm: Voxel size.
        noise_hu: Standard deviation before smoothing by the reconstruction kernel.
        kernel_mm: Width of the reconstruction kernel.
        cupping_hu: How much darker the middle is than the rim (beam hardening).
        offset_hu: Calibration error.
        manufacturer: DICOM Manufacturer.
        model_name: DICOM Manufacturer's Model Name.
        kvp: Tube voltage.
        structures: What this hospital contours.
    """

    name: str
    shape_zyx: Shape = (40, 96, 96)
    spacing_zyx_mm: Triple = (3.0, 3.75, 3.75)
    noise_hu: float = 22.0
    kernel_mm: float = 2.0
    cupping_hu: float = 0.0
    offset_hu: float = 0.0
    manufacturer: str = "Phantom Systems"
    model_name: str = "Analytic 1"
    kvp: float = 120.0
    structures: tuple[str, ...] = STRUCTURES


HOSPITALS = (
    Hospital(name="North"),
    Hospital(
        name="South",
        shape_zyx=(30, 88, 96),
        spacing_zyx_mm=(4.0, 4.0, 3.9),
        noise_hu=45.0,
        kernel_mm=1.0,
        cupping_hu=18.0,
        manufacturer="Phantom Imaging",
        model_name="Sharp 64",
        structures=("Bladder", "Rectum", "FemoralHead_L", "FemoralHead_R"),
    ),
    Hospital(
        name="East",
        shape_zyx=(48, 96, 104),
        spacing_zyx_mm=(2.5, 3.6, 3.6),
        noise_hu=15.0,
        kernel_mm=4.0,
        offset_hu=-12.0,
        manufacturer="Phantom Medical",
        model_name="Smooth 16",
        kvp=140.0,
        structures=("Bladder", "Rectum", "Prostate"),
    ),
    Hospital(
        name="West",
        shape_zyx=(24, 80, 80),
        spacing_zyx_mm=(5.0, 4.5, 4.5),
        noise_hu=30.0,
        kernel_mm=3.0,
        cupping_hu=30.0,
        offset_hu=8.0,
        manufacturer="Phantom Systems",
        model_name="Analytic 2",
        kvp=100.0,
    ),
)
"""Four hospitals with scanners, voxel sizes and habits of their own."""


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """One phantom patient.

    Args:
        label: Of hospital and patient, e.g. ``"North-3"``; invented.
        hospital: Where it was scanned.
        image: int16 in Hounsfield units.
        contours: Structure -> polygons (N, 3) in LPS mm, one per slice; what the hospital contours.
        organs: Structure -> its closed form, also of those that are not contoured.
        layers: Everything that was painted, tissue first, in the order in which it was.
    """

    label: str
    hospital: Hospital
    image: Volume
    contours: Mapping[str, tuple[FloatArray, ...]]
    organs: Mapping[str, Organ]
    layers: tuple[Organ, ...] = ()

    def contoured_volume_cm3(self, structure: str) -> float:
        """Areas of the cross-sections in closed form times the slice distance."""
        sz, _, _ = self.image.grid.spacing_zyx_mm
        levels = self.image.grid.affine.origin_lps_mm[2] + sz * np.arange(self.image.grid.shape_zyx[0])
        return sum(self.organs[structure].area_mm2(float(z)) for z in levels) * sz / 1000


def build_pelvis(hospital: Hospital, number: int, *, rng: np.random.Generator) -> PhantomPatient:
    """Make one patient; the same generator state gives the same patient.

    Args:
        hospital: Where it is scanned.
        number: For the label.
        rng: Source of the anatomy and of the noise.
    """
    (nz, ny, nx), (sz, sy, sx) = hospital.shape_zyx, hospital.spacing_zyx_mm
    couch_mm = float(rng.uniform(-300, 300))
    origin = (-(nx - 1) / 2 * sx, -(ny - 1) / 2 * sy, couch_mm - (nz - 1) / 2 * sz)
    grid = Grid(hospital.shape_zyx, Affine.from_spacing(hospital.spacing_zyx_mm, origin_lps_mm=origin))
    tissue, organs = _anatomy(rng, couch_mm, height_mm=nz * sz)
    image = np.full(grid.shape_zyx, AIR_HU)
    paint(image, [*tissue, *organs], grid)
    levels = couch_mm + sz * (np.arange(nz) - (nz - 1) / 2)
    contours = {
        organ.structure: tuple(p for z in levels if len(p := organ.polygon(float(z))))
        for organ in organs
        if organ.structure in hospital.structures
    }
    return PhantomPatient(
        label=f"{hospital.name}-{number}",
        hospital=hospital,
        image=Volume(scan_image(image, hospital, rng), grid),
        contours=contours,
        organs={organ.structure: organ for organ in organs if organ.structure in STRUCTURES},
        layers=(*tissue, *organs),
    )


def build_cohort(hospital: Hospital, patients: int, *, seed: int) -> list[PhantomPatient]:
    """Several patients of one hospital; each depends on ``seed`` and its number only."""
    return [
        build_pelvis(hospital, n, rng=np.random.default_rng([seed, n, *hospital.name.encode()]))
        for n in range(1, patients + 1)
    ]


def without_structure(patient: PhantomPatient, structure: str) -> PhantomPatient:
    """The same patient, with ``structure`` not contoured."""
    kept = {name: polygons for name, polygons in patient.contours.items() if name != structure}
    return replace(patient, contours=kept)


def _anatomy(rng: np.random.Generator, middle_z: float, height_mm: float) -> tuple[list[Organ], list[Organ]]:
    """Tissue to paint first, and organs, all around (0, 0, middle_z)."""

    def vary(value: float, spread: float) -> float:
        return value + float(rng.uniform(-spread, spread))

    def waves(amplitude: float) -> tuple[Wave, ...]:
        return tuple((k, float(rng.uniform(0, amplitude)), float(rng.uniform(0, 2 * np.pi))) for k in (2, 3))

    width, depth, fat = vary(158, 12), vary(102, 8), vary(18, 7)
    half = height_mm
    tissue = [
        Organ(structure="Body", centre_lps_mm=(0, 0, middle_z), radii_lps_mm=(width, depth, half), hu=FAT_HU,
              is_tube=True),
        Organ(structure="Muscle", centre_lps_mm=(0, 4, middle_z),
              radii_lps_mm=(width - fat, depth - fat, half), hu=MUSCLE_HU, is_tube=True),
        Organ(structure="Fat", centre_lps_mm=(0, -4, middle_z), radii_lps_mm=(62, 62, half), hu=FAT_HU + 15,
              waves=waves(0.05), is_tube=True),
        Organ(structure="Sacrum", centre_lps_mm=(0, 72, middle_z + 42), radii_lps_mm=(38, 14, 40), hu=330),
        Organ(structure="Pubis", centre_lps_mm=(0, -62, middle_z - 26), radii_lps_mm=(46, 11, 16), hu=380),
    ]  # fmt: skip
    neck, head = vary(88, 5), vary(23, 2.5)
    hip_y, hip_z = vary(4, 5), middle_z + vary(0, 6)
    for side in (1, -1):
        shell = (side * (neck - 4), hip_y, hip_z + 4)
        tissue.append(
            Organ(structure="Acetabulum", centre_lps_mm=shell, radii_lps_mm=(head + 11,) * 3, hu=420)
        )
        tissue.append(
            Organ(structure="Joint", centre_lps_mm=(side * neck, hip_y, hip_z),
                  radii_lps_mm=(head + 3,) * 3, hu=40)
        )  # fmt: skip
    bladder = (vary(34, 9), vary(27, 7), vary(25, 7))
    prostate = (vary(23, 4), vary(17, 3), vary(18, 4))
    floor = middle_z + vary(-4, 4)
    shift = vary(0, 4)
    organs = [
        Organ(structure="Rectum", centre_lps_mm=(vary(0, 5), vary(38, 4), middle_z + vary(-2, 4)),
              radii_lps_mm=(vary(17, 4), vary(14, 3), min(52.0, height_mm / 2 - 6)), hu=vary(28, 8),
              waves=waves(0.08), is_tube=True, bend_mm=vary(0, 6)),
        Organ(structure="RectumGas", centre_lps_mm=(0, vary(37, 3), middle_z + vary(0, 25)),
              radii_lps_mm=(vary(8, 3), vary(7, 2), vary(12, 6)), hu=-850),
        Organ(structure="Bladder", centre_lps_mm=(shift, vary(-24, 4), floor + bladder[2]),
              radii_lps_mm=bladder, hu=vary(6, 5), waves=waves(0.06)),
        Organ(structure="Prostate", centre_lps_mm=(shift / 2, vary(0, 3), floor - prostate[2] + 2),
              radii_lps_mm=prostate, hu=vary(44, 5), waves=waves(0.05)),
        Organ(structure="FemoralHead_L", centre_lps_mm=(neck, hip_y, hip_z),
              radii_lps_mm=(head,) * 3, hu=290),
        Organ(structure="FemoralHead_R", centre_lps_mm=(-neck, hip_y, hip_z),
              radii_lps_mm=(head,) * 3, hu=290),
    ]  # fmt: skip
    return tissue, organs


def scan_image(image: FloatArray, hospital: Hospital, rng: np.random.Generator) -> Array:
    """The image as this hospital's scanner gives it: int16."""
    sigma = [hospital.kernel_mm / 2.355 / spacing for spacing in hospital.spacing_zyx_mm]
    noisy = image + rng.normal(0, hospital.noise_hu, image.shape)
    smooth = ndimage.gaussian_filter(noisy, sigma)
    _, ny, nx = image.shape
    y, x = np.linspace(-1, 1, ny)[:, None], np.linspace(-1, 1, nx)
    cupping = hospital.cupping_hu * np.maximum(0, 1 - x**2 - y**2)
    inside = image > -500
    smooth -= cupping * inside - hospital.offset_hu * inside
    return np.asarray(np.clip(np.rint(smooth), -1024, 3071).astype(np.int16))
