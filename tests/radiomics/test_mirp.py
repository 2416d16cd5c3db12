"""mirp as an optional cross-check: all it has in common with us, on a random region."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from consilium.radiomics.features import compute_features
from consilium.radiomics.settings import FixedBinWidth, RadiomicsSettings

SAMPLED = {"morph_moran_i", "morph_geary_c"}
"""From 1000 voxels on mirp estimates these from random samples."""


def mirp_name(tag: str) -> str:
    """How mirp's table calls a feature, without the discretisation at the end."""
    for ours, theirs in (("cm_", "_d1"), ("ngl_", "_d1_a0.0")):
        if tag.startswith(ours):
            tag = tag.replace("_3D", f"{theirs}_3D")
    return tag.replace("_3D_comb", "_3d_v_mrg").replace("_3D", "_3d")


@pytest.mark.filterwarnings("ignore")
def test_every_common_feature_equals_mirp(tmp_path: Path, rng: np.random.Generator) -> None:
    mirp = pytest.importorskip("mirp", reason="the peer package mirp is absent")
    image = np.rint(rng.normal(0, 200, (20, 26, 28))).clip(-800, 300)
    z, y, x = np.mgrid[:20, :26, :28]
    mask = ((z - 10) * 2) ** 2 + (y - 13) ** 2 + (x - 14) ** 2 <= 11**2
    for name, array in (("image", image.astype(np.int16)), ("mask", mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array.T, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    logging.disable(logging.CRITICAL)
    table = mirp.extract_features(
        image=str(tmp_path / "image.nii.gz"),
        mask=str(tmp_path / "mask.nii.gz"),
        image_modality="ct",
        resegmentation_intensity_range=[-1000.0, 400.0],
        base_feature_families="all",
        base_discretisation_method="fixed_bin_size",
        base_discretisation_bin_width=25.0,
    )[0]
    logging.disable(logging.NOTSET)
    theirs = {str(name): table[name].iloc[0] for name in table.columns}
    settings = RadiomicsSettings(
        intensity_range=(-1000, 400), discretisation=FixedBinWidth(25), aggregations=("3D_comb",)
    )
    compared = 0
    for feature in compute_features(image, mask, (2.0, 1.0, 1.0), settings):
        name = mirp_name(feature.tag)
        found = [float(v) for key, v in theirs.items() if key == name or key.startswith(f"{name}_fbs")]
        if found and feature.tag not in SAMPLED:
            compared += 1
            # Its mesh closes blocks with diagonal neighbours in another way, so that areas differ a little.
            tolerance = 5e-3 if feature.family == "morphology" else 1e-4
            assert feature.value == pytest.approx(found[0], rel=tolerance, abs=1e-6), feature.tag
    assert compared > 150
