"""How an image is prepared before features are computed; part of every value's record."""

from dataclasses import dataclass

import numpy as np

from consilium.errors import ConfigurationError
from consilium.radiomics.definitions import AGGREGATION_CODES, FAMILIES
from consilium.types import Triple

MAX_LEVELS = 1024
"""Most grey levels: 13 co-occurrence matrices of so many take 109 MB."""


@dataclass(frozen=True)
class FixedBinNumber:
    """Grey levels 1 … ``bins`` of equal width between the least and the greatest intensity (IBSI K15C)."""

    bins: int = 32

    def __post_init__(self) -> None:
        if not 2 <= self.bins <= MAX_LEVELS:
            raise ConfigurationError(f"FixedBinNumber: bins must lie in 2 … {MAX_LEVELS}; found {self.bins}.")

    def describe(self, unit: str, intensity_range: tuple[float, float] | None) -> str:
        """Words for the record."""
        return f"fixed bin number {self.bins}"


@dataclass(frozen=True)
class FixedBinWidth:
    """Grey levels of ``width`` counted from ``origin`` (IBSI Q3RU, "fixed bin size").

    Args:
        width: In the image's unit, > 0.
        origin: Lower end of level 1; None takes the lower end of the intensity range if there is one, else
            the region's least intensity, which makes regions hard to compare.
    """

    width: float = 25.0
    origin: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.width) and self.width > 0):
            raise ConfigurationError(f"FixedBinWidth: width must be > 0; found {self.width}.")

    def starts_at(self, intensity_range: tuple[float, float] | None) -> float | None:
        """Lower end of level 1; None where it is the region's least intensity."""
        if self.origin is None and intensity_range is not None:
            return intensity_range[0]
        return self.origin

    def describe(self, unit: str, intensity_range: tuple[float, float] | None) -> str:
        """Words for the record."""
        start = self.starts_at(intensity_range)
        origin = "the least intensity" if start is None else f"{start:g} {unit}"
        return f"fixed bin width {self.width:g} {unit} from {origin}"


@dataclass(frozen=True)
class IntegerLevels:
    """The intensities are integers and are levels already; for the volume histogram, steps of 1."""

    def describe(self, unit: str, intensity_range: tuple[float, float] | None) -> str:
        """Words for the record."""
        return "steps of 1"


Discretisation = FixedBinNumber | FixedBinWidth | IntegerLevels


@dataclass(frozen=True, kw_only=True)
class RadiomicsSettings:
    """Everything that decides a feature's value besides image and contour.

    Args:
        resampled_spacing_zyx_mm: Voxel spacing to which image and contour are resampled (trilinear, contour
            at ≥ 0.5); None leaves the grid as it is.
        rounded: Round intensities to integers after resampling, as for Hounsfield units.
        intensity_range: Lower and upper intensity, both included, beyond which voxels leave the intensity
            mask (re-segmentation); None keeps all.
        outlier_sigma: Leave out voxels farther than this many standard deviations from the mean; None keeps
            them.
        discretisation: Grey levels of histogram and texture.
        volume_histogram: Levels of the intensity-volume histogram.
        distance: Chebyshev distance of neighbours in voxels, ≥ 1, for co-occurrence, tone difference and
            dependence.
        coarseness: Greatest difference of levels that count as dependent (IBSI's α).
        families: Which families to compute.
        aggregations: Which of `AGGREGATION_CODES`; "2D", "2_5D" and "3D" of the other matrices follow them.
        intensity_unit: Unit of the image.
    """

    resampled_spacing_zyx_mm: Triple | None = None
    rounded: bool = True
    intensity_range: tuple[float, float] | None = None
    outlier_sigma: float | None = None
    discretisation: Discretisation = FixedBinWidth(25.0, origin=-1000.0)
    volume_histogram: Discretisation = IntegerLevels()
    distance: int = 1
    coarseness: int = 0
    families: tuple[str, ...] = FAMILIES
    aggregations: tuple[str, ...] = ("3D_avg", "3D_comb")
    intensity_unit: str = "HU"

    def __post_init__(self) -> None:
        spacing = self.resampled_spacing_zyx_mm
        if spacing is not None and not (len(spacing) == 3 and all(np.isfinite(s) and s > 0 for s in spacing)):
            raise ConfigurationError(
                f"resampled_spacing_zyx_mm: must be three positive lengths in mm; found {spacing}."
            )
        ends = self.intensity_range
        if ends is not None and not (np.isfinite(ends).all() and ends[0] < ends[1]):
            raise ConfigurationError(
                f"intensity_range: must be two finite intensities, the lower first; found {ends}."
            )
        if self.outlier_sigma is not None and not self.outlier_sigma > 0:
            raise ConfigurationError(f"outlier_sigma: must be > 0; found {self.outlier_sigma}.")
        if self.distance < 1 or self.coarseness < 0:
            raise ConfigurationError(
                f"distance must be ≥ 1 and coarseness ≥ 0; found {self.distance} and {self.coarseness}."
            )
        for name, values, known in (
            ("families", self.families, FAMILIES),
            ("aggregations", self.aggregations, tuple(AGGREGATION_CODES)),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ConfigurationError(f"{name}: must be among {known}; found {unknown}.")

    @property
    def planes(self) -> tuple[str, ...]:
        """``"2D"``, ``"2_5D"`` and ``"3D"`` as far as `aggregations` asks for them."""
        return tuple(dict.fromkeys(a.rsplit("_", 1)[0] for a in self.aggregations))

    def describe(self) -> str:
        """The processing in one line, as it stands beside each value."""
        unit = self.intensity_unit
        spacing = self.resampled_spacing_zyx_mm
        parts = ["grid as is"]
        if spacing is not None:
            parts = ["trilinear to " + "x".join(f"{s:g}" for s in spacing) + " mm (z, y, x)"]
        if self.rounded:
            parts.append("intensities rounded")
        if self.intensity_range is not None:
            low, high = self.intensity_range
            parts.append(f"{low:g} to {high:g} {unit}")
        if self.outlier_sigma is not None:
            parts.append(f"within {self.outlier_sigma:g} standard deviations")
        parts.append(self.discretisation.describe(unit, self.intensity_range))
        volume_histogram = self.volume_histogram.describe(unit, self.intensity_range)
        parts.append(f"volume histogram: {volume_histogram}")
        if (self.distance, self.coarseness) != (1, 0):
            parts.append(f"distance {self.distance}, coarseness {self.coarseness}")
        return "; ".join(parts)


def ibsi_phantom_settings() -> RadiomicsSettings:
    """The settings under which IBSI's digital phantom has its reference values: nothing is changed."""
    return RadiomicsSettings(
        rounded=False,
        discretisation=IntegerLevels(),
        volume_histogram=IntegerLevels(),
        aggregations=tuple(AGGREGATION_CODES),
        intensity_unit="1",
    )
