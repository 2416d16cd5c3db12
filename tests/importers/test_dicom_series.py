"""Series on disk become volumes: exact values, true positions, and refusals that say what was found."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from consilium.errors import RefusedInput
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.importers.dicom_file import read_dicom
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.dicom_series import read_series
from consilium.types import FloatArray
from tests.data import shared_data
from tests.geometry.grids import grid, orientations
from tests.importers.files import only_series, write_noise

SHAPE = (6, 9, 7)


def edit(folder: Path, number: int, change: Callable[[Dataset], None]) -> None:
    path = sorted(folder.glob("*.dcm"))[number]
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("name", "axes"), list(orientations()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_series_is_read_back_at_its_place_in_every_orientation(
    tmp_path: Path, name: str, axes: FloatArray
) -> None:
    target = grid(SHAPE, (2.5, 0.8, 1.1), axes)
    image = write_noise(tmp_path, target)
    volume, findings = read_series(only_series(tmp_path))
    assert not findings
    # The slices may be stored in the other direction; the voxel at every point must be the same.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1).reshape(-1, 3)
    found = volume.grid.affine.to_indices(target.affine.to_points(index))
    assert np.abs(found - np.rint(found)).max() < 1e-3
    z, y, x = np.rint(found).astype(int).T
    assert np.array_equal(volume.array[z, y, x], image.array.reshape(-1))


def test_gantry_tilt_gives_a_sheared_grid(tmp_path: Path) -> None:
    matrix = grid(SHAPE, (3.0, 1.0, 1.0)).affine.matrix.copy()
    matrix[1, 0] = 0.9
    tilted = Grid(SHAPE, Affine(matrix))
    image = write_noise(tmp_path, tilted)
    volume, _ = read_series(only_series(tmp_path))
    assert volume.grid.affine.is_sheared
    assert volume.grid.is_same_as(tilted)
    assert np.array_equal(volume.array, image.array)


def test_a_missing_slice_is_refused_with_its_place_and_filled_on_request(tmp_path: Path) -> None:
    target = grid(SHAPE, (2.5, 1.0, 1.0))
    image = write_noise(tmp_path, target, leave_out=(3,))
    series = only_series(tmp_path)
    with pytest.raises(RefusedInput, match=r"2\.50 and 5\.00 mm, the first between slices 3 and 4 of 5"):
        read_series(series)
    volume, findings = read_series(series, allow_missing_slices=True)
    assert volume.grid.is_same_as(target)
    others = [0, 1, 2, 4, 5]
    assert np.array_equal(volume.array[others], image.array[others])
    middle = (image.array[2].astype(float) + image.array[4]) / 2
    assert np.abs(volume.array[3] - middle).max() <= 0.5
    assert findings[0].code == "interpolated-slices"
    assert "slices 4 (from 1)" in findings[0].message


def test_differing_slopes_are_applied_slice_by_slice(tmp_path: Path) -> None:
    image = write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))

    def steeper(dataset: Dataset) -> None:
        dataset.RescaleSlope = "2"
        dataset.RescaleIntercept = "-100"

    edit(tmp_path, 2, steeper)
    volume, _ = read_series(only_series(tmp_path))
    stored = image.array[2].astype(int) + 1024
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[2], 2 * stored - 100)
    assert np.array_equal(volume.array[1], image.array[1])


def test_values_beyond_int16_are_kept_as_float(tmp_path: Path) -> None:
    write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))
    edit(tmp_path, 0, lambda d: setattr(d, "RescaleIntercept", "40000.5"))
    volume, _ = read_series(only_series(tmp_path))
    assert volume.array.dtype == np.float32
    assert volume.array[0].min() > 32767


def test_padding_below_air_becomes_air(tmp_path: Path) -> None:
    write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))

    def pad(dataset: Dataset) -> None:
        pixels = dataset.pixel_array.astype(np.int16)
        pixels[0, 0] = -2000
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 63536)

    for number in range(SHAPE[0]):
        edit(tmp_path, number, pad)
    volume, _ = read_series(only_series(tmp_path))
    assert (volume.array[:, 0, 0] == -1024).all()


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
def test_a_compressed_series_has_the_same_values(tmp_path: Path, syntax: str) -> None:
    image = write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))
    for path in tmp_path.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    assert np.array_equal(read_series(only_series(tmp_path))[0].array, image.array)


def _mixed_patient(dataset: Dataset) -> None:
    dataset.PatientID = "somebody else"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), "one orientation"),
        (lambda d: setattr(d, "PixelSpacing", [1.0, 1.5]), "one pixel spacing"),
        (lambda d: setattr(d, "ImagePositionPatient", [0, 0, 0]), "line|equally spaced"),
        (_mixed_patient, "one patient identity; found 2"),
        (lambda d: setattr(d, "RescaleSlope", None), "RescaleSlope must hold"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-20]), "20 are missing"),
    ],
)
def test_a_series_that_does_not_hold_together_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], message: str
) -> None:
    write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))
    edit(tmp_path, 2, change)
    with pytest.raises(RefusedInput, match=message) as refusal:
        read_series(only_series(tmp_path))
    assert "Test-1" not in str(refusal.value)


def test_copies_of_a_file_are_refused(tmp_path: Path) -> None:
    write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))
    first = sorted(tmp_path.glob("*.dcm"))[0]
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    with pytest.raises(RefusedInput, match="there twice"):
        only_series(tmp_path)


def test_a_path_in_a_uid_is_refused_and_not_repeated(tmp_path: Path) -> None:
    write_noise(tmp_path, grid(SHAPE, (2.5, 1.0, 1.0)))
    for path in tmp_path.glob("*.dcm"):
        content = path.read_bytes()
        uid = pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID.encode()
        path.write_bytes(content.replace(uid, b"../" * (len(uid) // 3) + b"." * (len(uid) % 3)))
    with pytest.raises(RefusedInput, match="must be a UID") as refusal:
        only_series(tmp_path)
    assert ".." not in str(refusal.value)


def test_a_deflate_bomb_is_refused(tmp_path: Path) -> None:
    write_noise(tmp_path, grid((1, 4, 4), (2.5, 1.0, 1.0)))
    path = next(tmp_path.glob("*.dcm"))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    head = path.read_bytes()
    end = 128 + 4 + 12 + struct.unpack_from("<L", head, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    path.write_bytes(head[:end] + bomb)
    assert len(bomb) < 2**20
    with pytest.raises(RefusedInput, match="256 MiB when inflated"):
        read_dicom(path)


def test_deeply_nested_sequences_are_refused(tmp_path: Path) -> None:
    write_noise(tmp_path, grid((1, 4, 4), (2.5, 1.0, 1.0)))
    path = next(tmp_path.glob("*.dcm"))
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(content[:at] + opening * 3000)
    with pytest.raises(RefusedInput, match="nested too deeply"):
        read_dicom(path)
    assert not scan_dicom([path]).series


def test_every_file_of_the_edge_cases_is_taken_refused_or_left_out_with_a_reason() -> None:
    for folder in sorted(p for p in shared_data("dicom").iterdir() if p.is_dir()):
        scan = scan_dicom(sorted(p for p in folder.rglob("*") if p.is_file()))
        assert scan.series or scan.refused or scan.left_out
        assert all(r.remedy for r in scan.refused)


def test_real_ct_have_the_values_that_pydicom_gives() -> None:
    folder = shared_data("totalsegmentator/example_ct_dicom")
    series = only_series(folder)
    volume, _ = read_series(series)
    for k in (0, 9, 19):
        dataset = pydicom.dcmread(series.slices[k].stored.path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert np.array_equal(volume.array[k], hu)
