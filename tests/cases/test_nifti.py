"""NIfTI files: every kind that others write is read; a damaged one is refused by name."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from consilium.cases.nifti import read_nifti, write_nifti
from consilium.errors import DataError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume

ARRAY = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
VOLUME = Volume(ARRAY, Grid((2, 3, 4), Affine.from_spacing((3.0, 1.0, 0.5))))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_versions_and_byte_orders_are_read(tmp_path: Path, kind: type, order: str, ending: str) -> None:
    image = kind(
        ARRAY.transpose(2, 1, 0), np.diag([-0.5, -1.0, 3.0, 1.0]), kind.header_class(endianness=order)
    )
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / f"image{ending}")
    volume = read_nifti(tmp_path / f"image{ending}")
    assert np.array_equal(volume.array, ARRAY)
    assert volume.grid.is_same_as(VOLUME.grid)


def test_what_is_written_is_plain_gzip_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one.nii.gz", "two.nii.gz"):
        write_nifti(tmp_path / name, VOLUME)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    assert ARRAY.tobytes() in gzip.decompress(one)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:40] + b"\xff" * 20 + b[60:], lambda b: b""]
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = tmp_path / "image.nii.gz"
    write_nifti(path, VOLUME)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"image\.nii\.gz: must be a readable NIfTI"):
        read_nifti(path)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_header_that_claims_more_voxels_than_any_memory_holds_is_refused(
    tmp_path: Path, ending: str
) -> None:
    write_nifti(tmp_path / "image.nii.gz", VOLUME)
    content = bytearray(gzip.decompress((tmp_path / "image.nii.gz").read_bytes()))
    content[42:48] = np.full(3, 32767, "<i2").tobytes()
    path = tmp_path / f"damaged.{ending}"
    path.write_bytes(gzip.compress(content) if ending == "nii.gz" else content)
    with pytest.raises(DataError, match="must be a readable NIfTI"):
        read_nifti(path)
