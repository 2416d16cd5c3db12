"""IBSI families UHIW, ZVCW and P88C: intensity statistics, histogram and intensity-volume histogram."""

import math

import numpy as np

from consilium.errors import GeometryError
from consilium.radiomics.region import Region
from consilium.radiomics.settings import Discretisation, FixedBinNumber, FixedBinWidth, RadiomicsSettings
from consilium.types import Array, FloatArray


def compute_statistics(region: Region) -> dict[str, float]:
    """Statistics of the intensities as they are.

    Returns:
        Tag → value; skewness and kurtosis of a flat region are 0, ratios with a zero denominator NaN.

    Source:
        IBSI reference manual, "Intensity-based statistical features" (UHIW).
    """
    values = region.intensities
    energy = float((values**2).sum())
    return _moments("stat_", values) | {
        "stat_energy": energy,
        "stat_rms": math.sqrt(energy / len(values)),
    }


def compute_histogram(region: Region) -> dict[str, float]:
    """Statistics of the grey levels and of their histogram.

    Returns:
        Tag → value; gradients are NaN if there is only one level.

    Source:
        IBSI reference manual, "Intensity histogram features" (ZVCW).
    """
    levels = region.levels[region.levels > 0]
    counts = np.bincount(levels, minlength=region.level_count + 1)[1:].astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    return _moments("ih_", levels.astype(np.float64)) | {
        "ih_mode": float(_mode(counts, float(levels.mean()))),
        "ih_entropy": float(-(share * np.log2(share)).sum()),
        "ih_uniformity": float((share**2).sum()),
        **_gradients(counts),
    }


def compute_volume_histogram(region: Region, settings: RadiomicsSettings) -> dict[str, float]:
    """Which part of the volume has at least which intensity.

    Volume fraction at x % intensity: the largest part of the volume whose intensity fraction is at least
    x %. Intensity at x % volume: the least intensity that at most x % of the volume reaches.

    Returns:
        Tag → value; volume fractions are NaN if there is only one level.

    Source:
        IBSI reference manual, "Intensity-volume histogram features" (P88C).
    """
    steps, volume = _volume_curve(region.intensities, settings.volume_histogram, settings.intensity_range)
    extent = steps[-1] - steps[0]
    values = {}
    for percent in (10, 90):
        above = (steps - steps[0]) / extent >= percent / 100 - 1e-12 if extent > 0 else np.zeros(0, bool)
        values[f"ivh_v{percent}"] = float(volume[above].max()) if above.any() else math.nan
        within = volume <= percent / 100 + 1e-12
        values[f"ivh_i{percent}"] = float(steps[within].min()) if within.any() else float(steps[-1])
    values["ivh_diff_v10_v90"] = values["ivh_v10"] - values["ivh_v90"]
    values["ivh_diff_i10_i90"] = values["ivh_i10"] - values["ivh_i90"]
    return values


def _volume_curve(
    values: FloatArray, how: Discretisation, intensity_range: tuple[float, float] | None
) -> tuple[FloatArray, FloatArray]:
    """Intensities in ascending steps, and the part of the volume at or above each."""
    low, high = float(values.min()), float(values.max())
    if isinstance(how, FixedBinNumber):
        count = how.bins
        share = (values - low) / (high - low) if high > low else np.zeros(len(values))
        steps = np.arange(1.0, count + 1)
        values = np.minimum(np.floor(count * share) + 1, count)
    elif isinstance(how, FixedBinWidth):
        start = how.starts_at(intensity_range)
        low = low if start is None else start
        high = high if intensity_range is None else intensity_range[1]
        count = max(int(np.ceil((high - low) / how.width)), 1)
        steps = low + (np.arange(count) + 0.5) * how.width
        values = steps[np.clip(np.floor((values - low) / how.width).astype(int), 0, count - 1)]
    else:
        low, high = (low, high) if intensity_range is None else intensity_range
        if high - low > 1_000_000 or (np.rint(values) != values).any():
            raise GeometryError(
                f"image: the volume histogram in steps of 1 needs integers; found values of {low:g} to "
                f"{high:g}. Round intensities, or give it a fixed bin number (IBSI: 1000) or width."
            )
        steps = np.arange(low, high + 1)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, steps, side="left")
    return steps, 1 - below / len(values)


def _moments(prefix: str, values: FloatArray) -> dict[str, float]:
    mean, variance = float(values.mean()), float(values.var())
    deviation = values - mean
    p10, p25, p75, p90 = (float(p) for p in np.percentile(values, [10, 25, 75, 90]))
    median = float(np.median(values))
    robust = values[(values >= p10) & (values <= p90)]
    least, greatest = float(values.min()), float(values.max())
    flat = variance == 0
    found = {
        "mean": mean,
        "var": variance,
        "skew": 0.0 if flat else float((deviation**3).mean()) / variance**1.5,
        "kurt": 0.0 if flat else float((deviation**4).mean()) / variance**2 - 3,
        "median": median,
        "min": least,
        "p10": p10,
        "p90": p90,
        "max": greatest,
        "iqr": p75 - p25,
        "range": greatest - least,
        "mad": float(np.abs(deviation).mean()),
        "rmad": float(np.abs(robust - robust.mean()).mean()),
        "medad": float(np.abs(values - median).mean()),
        "cov": math.sqrt(variance) / mean if mean else math.nan,
        "qcod": (p75 - p25) / (p75 + p25) if p75 + p25 else math.nan,
    }
    return {prefix + name: value for name, value in found.items()}


def _mode(counts: FloatArray, mean: float) -> int:
    """The commonest level; of several the one nearest to the mean, then the lowest."""
    commonest = np.flatnonzero(counts == counts.max()) + 1
    return int(commonest[np.argmin(np.abs(commonest - mean))])


def _gradients(counts: Array) -> dict[str, float]:
    if len(counts) < 2:
        return dict.fromkeys(("ih_max_grad", "ih_max_grad_g", "ih_min_grad", "ih_min_grad_g"), math.nan)
    gradient = np.gradient(counts)
    return {
        "ih_max_grad": float(gradient.max()),
        "ih_max_grad_g": float(gradient.argmax() + 1),
        "ih_min_grad": float(gradient.min()),
        "ih_min_grad_g": float(gradient.argmin() + 1),
    }
