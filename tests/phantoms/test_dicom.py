"""Phantom patients as DICOM, read back by plain pydicom and by highdicom."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from consilium.phantoms.dicom import SeriesIdentity, moved, write_patient, write_series
from consilium.phantoms.pelvis import HOSPITALS, PhantomPatient, build_cohort
from tests.geometry.grids import rotation


@pytest.fixture(scope="module")
def patient() -> PhantomPatient:
    return build_cohort(HOSPITALS[3], 1, seed=11)[0]


def read_slices(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_the_series_holds_the_image_and_its_place(patient: PhantomPatient, tmp_path: Path) -> None:
    write_series(tmp_path, patient.image, SeriesIdentity(label="t-1"))
    slices = read_slices(tmp_path)
    volume = highdicom.get_volume_from_series(slices)
    grid = patient.image.grid
    corners = [(0, 0, 0), [n - 1 for n in grid.shape_zyx]]
    first, last = np.rint(volume.map_reference_to_indices(grid.affine.to_points(corners))).astype(int)
    assert first[0] > last[0], "highdicom counts slices the other way round"
    np.testing.assert_array_equal(volume.array[::-1], patient.image.array)
    np.testing.assert_allclose(
        volume.map_indices_to_reference(np.array([first, last])), grid.affine.to_points(corners), atol=1e-6
    )


def test_a_turned_patient_keeps_voxels_and_carries_its_contours(
    patient: PhantomPatient, tmp_path: Path
) -> None:
    image, contours = moved(patient.image, patient.contours, rotation((1, 2, 3), 30))
    write_patient(tmp_path, image, contours, SeriesIdentity(label="t-2"))
    volume = highdicom.get_volume_from_series(read_slices(tmp_path / "ct"))
    structures = pydicom.dcmread(tmp_path / "rtstruct.dcm")
    polygon = np.array(structures.ROIContourSequence[0].ContourSequence[0].ContourData, float).reshape(-1, 3)
    index = volume.map_reference_to_indices(polygon)
    assert np.ptp(index[:, 0]) < 1e-3
    assert abs(index[0, 0] - np.rint(index[0, 0])) < 1e-3


def test_lost_slices_leave_a_gap_and_no_contours_on_them(patient: PhantomPatient, tmp_path: Path) -> None:
    write_patient(tmp_path, patient.image, patient.contours, SeriesIdentity(label="t-3"), leave_out=(10, 11))
    z = sorted(float(s.ImagePositionPatient[2]) for s in read_slices(tmp_path / "ct"))
    assert max(np.diff(z)) == pytest.approx(15.0)
    structures = pydicom.dcmread(tmp_path / "rtstruct.dcm")
    levels = {
        round(float(c.ContourData[2]), 2) for r in structures.ROIContourSequence for c in r.ContourSequence
    }
    assert levels <= {round(v, 2) for v in z}


def test_every_contour_names_its_slice_or_one_that_is_not_there(
    patient: PhantomPatient, tmp_path: Path
) -> None:
    for named in (True, False):
        folder = tmp_path / str(named)
        identity = SeriesIdentity(label="t-4")
        write_patient(folder, patient.image, patient.contours, identity, name_instances=named)
        slices = {s.SOPInstanceUID: float(s.ImagePositionPatient[2]) for s in read_slices(folder / "ct")}
        for roi in pydicom.dcmread(folder / "rtstruct.dcm").ROIContourSequence:
            for contour in roi.ContourSequence:
                uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
                assert (uid in slices) == named
                assert not named or abs(slices[uid] - float(contour.ContourData[2])) < 1e-3


def test_the_same_label_gives_the_same_files(patient: PhantomPatient, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_patient(tmp_path / name, patient.image, patient.contours, SeriesIdentity(label="t-5"))
    for path in sorted((tmp_path / "a").rglob("*.dcm")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
