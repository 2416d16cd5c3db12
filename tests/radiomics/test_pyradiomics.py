"""pyradiomics' baselines on real images: equal where the definitions agree, and why not where they do not."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from consilium.radiomics.features import compute_features
from consilium.radiomics.settings import FixedBinNumber, FixedBinWidth, RadiomicsSettings
from consilium.types import Array, Mask, Triple
from tests.data import shared_data
from tests.radiomics.references import PYRADIOMICS_TAGS, read_baseline, read_nrrd

IMAGES = ("brain1", "brain2", "breast1")
TEXTURES = ("glcm", "glrlm", "glszm", "ngtdm", "gldm")
SHIFT = 2000.0
"""Added to intensities by the baseline's settings (voxelArrayShift) before energy and root mean square."""
AXES = ("MajorAxisLength", "MinorAxisLength", "LeastAxisLength")
MESH = ("MeshVolume", "SurfaceArea", "SurfaceVolumeRatio", "Sphericity")


@cache
def image_and_mask(folder: Path, name: str) -> tuple[Array, Mask, Triple]:
    image, spacing = read_nrrd(folder / f"{name}_image.nrrd")
    label, _ = read_nrrd(folder / f"{name}_label.nrrd")
    return image, label == 1, spacing


@cache
def computed(folder: Path, name: str, variant: str) -> dict[str, float]:
    """Our features under the settings of the baseline's variant.

    pyradiomics counts bins of a fixed width from the multiple of the width below the least intensity.
    """
    image, mask, spacing = image_and_mask(folder, name)
    values = image[mask].astype(float)
    sigma = 3.0 if variant == "_resegmentation" else None
    if sigma:
        values = values[np.abs(values - values.mean()) <= sigma * values.std()]
    width = FixedBinWidth(25.0, origin=float(np.floor(values.min() / 25) * 25))
    settings = RadiomicsSettings(
        rounded=False,
        outlier_sigma=sigma,
        discretisation=FixedBinNumber(64) if variant == "_FBN" else width,
        aggregations=("2_5D_avg", "3D_avg"),
    )
    return {f.tag: f.value for f in compute_features(image, mask, spacing, settings)}


def suffix(kind: str, variant: str) -> str:
    """pyradiomics' 2D variant merges slices; it averages over directions."""
    plane = "_2_5D" if variant == "_2d" else "_3D"
    return plane + ("_avg" if kind in {"glcm", "glrlm"} else "")


@pytest.mark.parametrize("variant", ["", "_2d", "_FBN", "_resegmentation"])
@pytest.mark.parametrize("name", IMAGES)
def test_textures_equal_the_baseline(name: str, variant: str) -> None:
    folder = shared_data("pyradiomics")
    ours = computed(folder, name, variant)
    for kind in TEXTURES:
        baseline = read_baseline(folder, kind, name + variant)
        tags = PYRADIOMICS_TAGS[kind]
        assert len(baseline) >= len(tags)
        for feature, tag in tags.items():
            value = ours[tag + suffix(kind, variant)]
            assert value == pytest.approx(baseline[feature], rel=1e-6, abs=1e-9), (kind, feature)


@pytest.mark.parametrize("variant", ["", "_resegmentation"])
@pytest.mark.parametrize("name", IMAGES)
def test_statistics_equal_the_baseline_but_for_two_conventions(name: str, variant: str) -> None:
    folder = shared_data("pyradiomics")
    ours = dict(computed(folder, name, variant))
    image, mask, _ = image_and_mask(folder, name)
    # IBSI's kurtosis is that in excess of the normal distribution's 3; pyradiomics' is not.
    ours["stat_kurt"] += 3
    if not variant:
        shifted = image[mask].astype(float) + SHIFT
        ours["stat_energy"] = float((shifted**2).sum())
        ours["stat_rms"] = float(np.sqrt((shifted**2).mean()))
    baseline = read_baseline(folder, "firstorder", name + variant)
    for feature, tag in PYRADIOMICS_TAGS["firstorder"].items():
        assert ours[tag] == pytest.approx(baseline[feature], rel=1e-6), feature


@pytest.mark.parametrize("name", IMAGES)
def test_shapes_equal_the_baseline_but_for_two_conventions(name: str) -> None:
    folder = shared_data("pyradiomics")
    ours, baseline = computed(folder, name, ""), read_baseline(folder, "shape", name)
    voxels = int(image_and_mask(folder, name)[1].sum())
    for feature, tag in PYRADIOMICS_TAGS["shape"].items():
        expected, tolerance = baseline[feature], 1e-6
        if feature in AXES:
            # IBSI's covariance divides by N - 1, pyradiomics' by N.
            expected *= np.sqrt(voxels / (voxels - 1))
        if feature in MESH:
            # Blocks with diagonal neighbours are closed in another way.
            tolerance = 6e-4
        assert ours[tag] == pytest.approx(expected, rel=tolerance), feature
