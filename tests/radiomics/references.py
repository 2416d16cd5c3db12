"""Reference values and images for the radiomics tests: IBSI's digital phantom and pyradiomics' baselines."""

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from consilium.types import Array, Mask, Triple

PYRADIOMICS_TAGS: dict[str, dict[str, str]] = {
    "shape": {
        "MeshVolume": "morph_volume",
        "VoxelVolume": "morph_vol_approx",
        "SurfaceArea": "morph_area_mesh",
        "SurfaceVolumeRatio": "morph_av",
        "Sphericity": "morph_sphericity",
        "Maximum3DDiameter": "morph_diam",
        "MajorAxisLength": "morph_pca_maj_axis",
        "MinorAxisLength": "morph_pca_min_axis",
        "LeastAxisLength": "morph_pca_least_axis",
        "Elongation": "morph_pca_elongation",
        "Flatness": "morph_pca_flatness",
    },
    "firstorder": {
        "InterquartileRange": "stat_iqr",
        "Skewness": "stat_skew",
        "Kurtosis": "stat_kurt",
        "Median": "stat_median",
        "Energy": "stat_energy",
        "RootMeanSquared": "stat_rms",
        "RobustMeanAbsoluteDeviation": "stat_rmad",
        "MeanAbsoluteDeviation": "stat_mad",
        "Maximum": "stat_max",
        "Minimum": "stat_min",
        "90Percentile": "stat_p90",
        "10Percentile": "stat_p10",
        "Range": "stat_range",
        "Variance": "stat_var",
        "Mean": "stat_mean",
        "Uniformity": "ih_uniformity",
        "Entropy": "ih_entropy",
    },
    "glcm": {
        "JointAverage": "cm_joint_avg",
        "SumAverage": "cm_sum_avg",
        "JointEntropy": "cm_joint_entr",
        "ClusterShade": "cm_clust_shade",
        "MaximumProbability": "cm_joint_max",
        "Idmn": "cm_inv_diff_mom_norm",
        "JointEnergy": "cm_energy",
        "Contrast": "cm_contrast",
        "DifferenceEntropy": "cm_diff_entr",
        "InverseVariance": "cm_inv_var",
        "DifferenceVariance": "cm_diff_var",
        "Idn": "cm_inv_diff_norm",
        "Idm": "cm_inv_diff_mom",
        "Correlation": "cm_corr",
        "Autocorrelation": "cm_auto_corr",
        "SumEntropy": "cm_sum_entr",
        "SumSquares": "cm_joint_var",
        "ClusterProminence": "cm_clust_prom",
        "Imc2": "cm_info_corr2",
        "Imc1": "cm_info_corr1",
        "DifferenceAverage": "cm_diff_avg",
        "Id": "cm_inv_diff",
        "ClusterTendency": "cm_clust_tend",
    },
    "glrlm": {
        "ShortRunEmphasis": "rlm_sre",
        "LongRunEmphasis": "rlm_lre",
        "LowGrayLevelRunEmphasis": "rlm_lgre",
        "HighGrayLevelRunEmphasis": "rlm_hgre",
        "ShortRunLowGrayLevelEmphasis": "rlm_srlge",
        "ShortRunHighGrayLevelEmphasis": "rlm_srhge",
        "LongRunLowGrayLevelEmphasis": "rlm_lrlge",
        "LongRunHighGrayLevelEmphasis": "rlm_lrhge",
        "GrayLevelNonUniformity": "rlm_glnu",
        "GrayLevelNonUniformityNormalized": "rlm_glnu_norm",
        "RunLengthNonUniformity": "rlm_rlnu",
        "RunLengthNonUniformityNormalized": "rlm_rlnu_norm",
        "RunPercentage": "rlm_r_perc",
        "GrayLevelVariance": "rlm_gl_var",
        "RunVariance": "rlm_rl_var",
        "RunEntropy": "rlm_rl_entr",
    },
    "glszm": {
        "SmallAreaEmphasis": "szm_sze",
        "LargeAreaEmphasis": "szm_lze",
        "LowGrayLevelZoneEmphasis": "szm_lgze",
        "HighGrayLevelZoneEmphasis": "szm_hgze",
        "SmallAreaLowGrayLevelEmphasis": "szm_szlge",
        "SmallAreaHighGrayLevelEmphasis": "szm_szhge",
        "LargeAreaLowGrayLevelEmphasis": "szm_lzlge",
        "LargeAreaHighGrayLevelEmphasis": "szm_lzhge",
        "GrayLevelNonUniformity": "szm_glnu",
        "GrayLevelNonUniformityNormalized": "szm_glnu_norm",
        "SizeZoneNonUniformity": "szm_zsnu",
        "SizeZoneNonUniformityNormalized": "szm_zsnu_norm",
        "ZonePercentage": "szm_z_perc",
        "GrayLevelVariance": "szm_gl_var",
        "ZoneVariance": "szm_zs_var",
        "ZoneEntropy": "szm_zs_entr",
    },
    "ngtdm": {
        "Coarseness": "ngt_coarseness",
        "Contrast": "ngt_contrast",
        "Busyness": "ngt_busyness",
        "Complexity": "ngt_complexity",
        "Strength": "ngt_strength",
    },
    "gldm": {
        "SmallDependenceEmphasis": "ngl_lde",
        "LargeDependenceEmphasis": "ngl_hde",
        "LowGrayLevelEmphasis": "ngl_lgce",
        "HighGrayLevelEmphasis": "ngl_hgce",
        "SmallDependenceLowGrayLevelEmphasis": "ngl_ldlge",
        "SmallDependenceHighGrayLevelEmphasis": "ngl_ldhge",
        "LargeDependenceLowGrayLevelEmphasis": "ngl_hdlge",
        "LargeDependenceHighGrayLevelEmphasis": "ngl_hdhge",
        "GrayLevelNonUniformity": "ngl_glnu",
        "DependenceNonUniformity": "ngl_dcnu",
        "DependenceNonUniformityNormalized": "ngl_dcnu_norm",
        "GrayLevelVariance": "ngl_gl_var",
        "DependenceVariance": "ngl_dc_var",
        "DependenceEntropy": "ngl_dc_entr",
    },
}
"""Class of pyradiomics -> its feature -> IBSI's tag without aggregation."""


def read_phantom(folder: Path) -> tuple[Array, Mask]:
    """IBSI's digital phantom, (Z, Y, X); its voxels are cubes of 2 mm."""
    image, mask = (
        np.asarray(nib.load(folder / "digital_phantom" / kind / f"{name}.nii.gz").dataobj).T
        for kind, name in (("image", "phantom"), ("mask", "mask"))
    )
    return image, mask > 0


def read_phantom_references(folder: Path) -> dict[str, tuple[float, float]]:
    """Tag -> (value, tolerance); NaN for tags on which IBSI reached no consensus."""
    text = (folder / "ibsi_1_dig_phantom.csv").read_text(encoding="utf-8-sig")
    rows = [line.split(";") for line in text.splitlines()[1:]]
    return {tag: (float(value or "nan"), float(tolerance or "nan")) for value, tolerance, tag in rows}


def read_nrrd(path: Path) -> tuple[Array, Triple]:
    """(Z, Y, X) array and spacing of a gzip-compressed NRRD file whose axes are those of the patient."""
    head, data = path.read_bytes().split(b"\n\n", 1)
    lines = [line.split(": ", 1) for line in head.decode().splitlines() if ": " in line and line[0] != "#"]
    fields = dict(lines)
    dtype = {"short": "<i2", "int": "<i4"}[fields["type"]]
    sizes = [int(n) for n in fields["sizes"].split()]
    vectors = [[float(v) for v in part.strip("()").split(",")] for part in fields["space directions"].split()]
    x, y, z = (float(np.linalg.norm(vector)) for vector in vectors)
    return np.frombuffer(gzip.decompress(data), dtype).reshape(sizes[::-1]), (z, y, x)


def read_baseline(folder: Path, kind: str, test_case: str) -> dict[str, float]:
    """Feature -> value of pyradiomics' baseline, e.g. of class ``"glcm"`` for case ``"brain1"``."""
    with (folder / "baseline" / f"baseline_{kind}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    prefix = f"original_{kind}_"
    return {
        row["featureName"].removeprefix(prefix): float(row[test_case])
        for row in rows
        if row["featureName"].startswith(prefix) and row.get(test_case)
    }
