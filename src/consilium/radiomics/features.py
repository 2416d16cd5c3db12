"""The one entry: every feature of one contour, each with its name, code, unit and processing."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from consilium.radiomics.cooccurrence import compute_cooccurrence
from consilium.radiomics.definitions import (
    AGGREGATION_CODES,
    PLANE_CODES,
    Definition,
    definitions,
    split_tag,
)
from consilium.radiomics.histogram import compute_histogram, compute_statistics, compute_volume_histogram
from consilium.radiomics.local_intensity import compute_local_intensity
from consilium.radiomics.morphology import compute_morphology
from consilium.radiomics.neighbours import compute_neighbours
from consilium.radiomics.region import Region, prepare_region
from consilium.radiomics.runs import compute_runs
from consilium.radiomics.settings import RadiomicsSettings
from consilium.radiomics.zones import compute_zones
from consilium.types import Array, Mask, Triple


@dataclass(frozen=True)
class FeatureValue:
    """One feature of one contour.

    Attributes:
        tag: IBSI's short name with the way of aggregation, e.g. ``"cm_contrast_3D_avg"``.
        family: IBSI's family.
        name: IBSI's name.
        ibsi_code: IBSI's identifier of the feature.
        aggregation: E.g. ``"3D_avg"``; empty where there is none.
        aggregation_code: IBSI's identifier of the aggregation; empty where there is none.
        value: The value; NaN where the region does not define it.
        unit: Unit of the value.
        processing: How image and contour were prepared.
    """

    tag: str
    family: str
    name: str
    ibsi_code: str
    aggregation: str
    aggregation_code: str
    value: float
    unit: str
    processing: str

    def as_dict(self) -> dict[str, str | float]:
        """The fields by name, as for a table's row."""
        return asdict(self)


def compute_features(
    image: Array,
    mask: Mask,
    spacing_zyx_mm: Triple,
    settings: RadiomicsSettings | None = None,
) -> tuple[FeatureValue, ...]:
    """All features of the image inside a contour.

    Args:
        image: (Z, Y, X) intensities; the image around the contour counts too (resampling, local intensity),
            so do not cut it out.
        mask: (Z, Y, X) bool: the contour.
        spacing_zyx_mm: Voxel spacing in mm **in array order (Z, Y, X)**; texture "in the slice" is in
            planes of constant Z.
        settings: Preparation and choice of features; the default suits CT in Hounsfield units.

    Returns:
        One value per feature and way of aggregation, in IBSI's order.

    Raises:
        GeometryError: An empty contour (also after the intensity range), shapes that differ, or intensities
            that are not finite.

    Source:
        Zwanenburg et al. 2020, Radiology 295(2):328, and the IBSI reference manual.
    """
    settings = settings or RadiomicsSettings()
    region = prepare_region(image, mask, spacing_zyx_mm, settings)
    values: dict[str, float] = {}
    for family, compute in _plan(region, settings).items():
        if set(family) & set(settings.families):
            values |= {tag: value for tag, value in compute().items() if _wanted(tag, settings)}
    known = definitions()
    order = {tag: i for i, tag in enumerate(known)}
    processing = settings.describe()
    ordered = sorted(values, key=lambda tag: order[split_tag(tag)[0]])
    return tuple(_record(tag, values[tag], known[split_tag(tag)[0]], settings, processing) for tag in ordered)


def _plan(
    region: Region, settings: RadiomicsSettings
) -> dict[tuple[str, ...], Callable[[], dict[str, float]]]:
    """Families → how to compute them; families that share a walk over the voxels stand together."""

    def zones() -> dict[str, float]:
        sizes, distances = compute_zones(region, settings)
        return sizes | distances

    def neighbours() -> dict[str, float]:
        tones, dependences = compute_neighbours(region, settings)
        return tones | dependences

    return {
        ("morphology",): lambda: compute_morphology(region),
        ("local intensity",): lambda: compute_local_intensity(region),
        ("intensity statistics",): lambda: compute_statistics(region),
        ("intensity histogram",): lambda: compute_histogram(region),
        ("intensity-volume histogram",): lambda: compute_volume_histogram(region, settings),
        ("grey level co-occurrence matrix",): lambda: compute_cooccurrence(region, settings),
        ("grey level run length matrix",): lambda: compute_runs(region, settings),
        ("grey level size zone matrix", "grey level distance zone matrix"): zones,
        (
            "neighbourhood grey tone difference matrix",
            "neighbouring grey level dependence matrix",
        ): neighbours,
    }


def unit_of(definition: Definition, intensity_unit: str) -> str:
    """The feature's unit with the image's own, e.g. ``"HU^2"``; an image without unit has ``"1"``."""
    if intensity_unit == "1":
        plain = {"intensity": "1", "intensity^2": "1", "intensity mm3": "mm3"}
        return plain.get(definition.unit, definition.unit)
    return definition.unit.replace("intensity", intensity_unit)


def _wanted(tag: str, settings: RadiomicsSettings) -> bool:
    return definitions()[split_tag(tag)[0]].family in settings.families


def _record(
    tag: str, value: float, definition: Definition, settings: RadiomicsSettings, processing: str
) -> FeatureValue:
    aggregation = split_tag(tag)[1]
    return FeatureValue(
        tag=tag,
        family=definition.family,
        name=definition.name,
        ibsi_code=definition.ibsi_code,
        aggregation=aggregation,
        aggregation_code=(AGGREGATION_CODES | PLANE_CODES).get(aggregation, ""),
        value=value if math.isfinite(value) else math.nan,
        unit=unit_of(definition, settings.intensity_unit),
        processing=processing,
    )
