"""A deformation on paper: points, images, masks, Jacobian and file agree with closed forms."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as itk

from consilium.adaptation.deformation import Deformation
from consilium.adaptation.propagate import StructureShape
from consilium.cases.nifti import write_displacements
from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid, Volume
from consilium.metrics.overlap import dice
from tests.geometry.grids import rotation

AXES = rotation((1, 2, 3), 20) @ np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float)
OBLIQUE = Grid((20, 26, 24), Affine.from_spacing((4, 3, 3), origin_lps_mm=(-30, 20, 60), axes_lps=AXES))
LINEAR = np.array([[0.1, 0.02, 0], [0, -0.05, 0.03], [0.04, 0, 0.08]])
MIDDLE = OBLIQUE.affine.to_points((9.5, 12.5, 11.5))


def stretched() -> Deformation:
    """``u(p) = LINEAR @ (p - MIDDLE)``, then a turn and a shift."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in OBLIQUE.shape_zyx), indexing="ij"), -1)
    points = OBLIQUE.affine.to_points(index)
    field = np.moveaxis((points - MIDDLE) @ LINEAR.T, -1, 0).astype(np.float32)
    rigid = np.eye(4)
    rigid[:3, :3] = rotation((0, 1, 1), 7)
    rigid[:3, 3] = (5, -8, 3)
    return Deformation(field, OBLIQUE, rigid)


def on_paper(points: np.ndarray) -> np.ndarray:
    deformation = stretched()
    moved = points + (points - MIDDLE) @ LINEAR.T
    return moved @ deformation.rigid[:3, :3].T + deformation.rigid[:3, 3]


STRAIGHT = Grid(
    (30, 40, 36), Affine.from_spacing((2.5, 2, 2), origin_lps_mm=tuple(on_paper(MIDDLE) - (35, 39, 36.25)))
)
"""The planning CT's grid."""


def test_points_go_where_they_go_on_paper() -> None:
    points = MIDDLE + np.random.default_rng(0).uniform(-20, 20, (50, 3))
    np.testing.assert_allclose(stretched().to_planning(points), on_paper(points), atol=1e-4)


def test_the_jacobian_of_a_linear_field_is_its_determinant() -> None:
    np.testing.assert_allclose(stretched().jacobian, np.linalg.det(np.eye(3) + LINEAR), rtol=1e-4)


def test_a_fold_has_a_negative_jacobian() -> None:
    field = np.zeros((3, *OBLIQUE.shape_zyx), np.float32)
    along_z = OBLIQUE.affine.matrix[:3, 0]
    for z in range(10, 15):
        field[:, z] = (-1.5 * (z - 10) * along_z)[:, None, None]
    jacobian = Deformation(field, OBLIQUE, np.eye(4)).jacobian
    assert jacobian[12].max() < 0
    assert jacobian[5].min() == pytest.approx(1)


def test_an_image_of_positions_warps_to_the_planning_positions() -> None:
    # Trilinear interpolation keeps affine functions, so the warped coordinates are exact inside.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in STRAIGHT.shape_zyx), indexing="ij"), -1)
    points = STRAIGHT.affine.to_points(index)
    inner = OBLIQUE.cropped(Box((7, 9, 8), (13, 17, 16)))
    wanted = on_paper(
        inner.affine.to_points(
            np.stack(np.meshgrid(*(np.arange(n) for n in inner.shape_zyx), indexing="ij"), -1)
        )
    )
    inside = STRAIGHT.affine.to_indices(wanted)
    assert inside.min() > 0
    assert (inside.max(axis=(0, 1, 2)) < np.array(STRAIGHT.shape_zyx) - 1).all()
    for axis in range(3):
        warped = stretched().warp(Volume(points[..., axis], STRAIGHT), inner, fill=-1e6).array
        np.testing.assert_allclose(warped, wanted[..., axis], atol=2e-3)


def test_a_ball_is_carried_to_the_stretched_ball() -> None:
    centre = on_paper(MIDDLE)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in STRAIGHT.shape_zyx), indexing="ij"), -1)
    ball = np.linalg.norm(STRAIGHT.affine.to_points(index) - centre, axis=-1) < 14
    shape = StructureShape.of(ball, STRAIGHT)
    assert shape is not None
    target = Grid((40, 60, 60), Affine.from_spacing((2, 2, 2), origin_lps_mm=tuple(MIDDLE - (60, 60, 40))))
    points = target.affine.to_points(
        np.stack(np.meshgrid(*(np.arange(n) for n in target.shape_zyx), indexing="ij"), -1)
    )
    truth = np.linalg.norm(on_paper(points) - centre, axis=-1) < 14
    found = shape.carried(stretched(), target)
    # A ball of 7 voxels' radius knows its surface within half a voxel.
    assert dice(truth, found) > 0.95
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), np.argwhere(truth).mean(axis=0), atol=0.05)


def test_without_deformation_every_mask_comes_back_exactly() -> None:
    rng = np.random.default_rng(3)
    for mask in (rng.random(STRAIGHT.shape_zyx) < 0.3, np.eye(36, dtype=bool)[None].repeat(30, 0)[:, :36]):
        padded = np.zeros(STRAIGHT.shape_zyx, bool)
        padded[: mask.shape[0], : mask.shape[1], : mask.shape[2]] = mask
        shape = StructureShape.of(padded, STRAIGHT)
        assert shape is not None
        np.testing.assert_array_equal(shape.carried(Deformation.identity(STRAIGHT), STRAIGHT), padded)


def test_a_structure_outside_the_target_is_empty_and_an_empty_one_has_no_shape() -> None:
    mask = np.zeros(STRAIGHT.shape_zyx, bool)
    assert StructureShape.of(mask, STRAIGHT) is None
    mask[2:5, 2:5, 2:5] = True
    shape = StructureShape.of(mask, STRAIGHT)
    assert shape is not None
    far = Grid((5, 5, 5), Affine.from_spacing((2, 2, 2), origin_lps_mm=(900, 900, 900)))
    assert not shape.carried(Deformation.identity(far), far).any()


def test_what_is_no_rigid_movement_is_refused() -> None:
    with pytest.raises(GeometryError, match="stretches"):
        Deformation(np.zeros((3, *OBLIQUE.shape_zyx), np.float32), OBLIQUE, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(GeometryError, match="on its grid"):
        Deformation(np.zeros((3, 2, 2, 2), np.float32), OBLIQUE, np.eye(4))


def test_the_file_holds_the_field_in_ras_for_an_independent_reader(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    deformation = stretched()
    path = tmp_path / "deformation.nii.gz"
    write_displacements(path, deformation.total_displacement_mm(), deformation.grid)
    image = nibabel.load(path)
    assert image.header.get_intent()[0] == "displacement vector"
    data = np.asarray(image.dataobj)
    assert data.shape == (24, 26, 20, 1, 3)
    i, j, k = 5, 11, 7
    ras = (image.affine @ (i, j, k, 1))[:3]
    lps = ras * (-1, -1, 1)
    moved = lps + data[i, j, k, 0] * (-1, -1, 1)
    np.testing.assert_allclose(moved, on_paper(lps), atol=1e-3)


def test_itk_reads_the_file_as_a_displacement_field(tmp_path: Path) -> None:
    deformation = stretched()
    path = tmp_path / "deformation.nii.gz"
    write_displacements(path, deformation.total_displacement_mm(), deformation.grid)
    transform = itk.DisplacementFieldTransform(itk.ReadImage(str(path), itk.sitkVectorFloat64))
    for shift in ((0, 0, 0), (6, -7, 9), (-8, 5, -6)):
        point = MIDDLE + shift
        np.testing.assert_allclose(transform.TransformPoint(tuple(point)), on_paper(point), atol=2e-3)
