"""NIfTI files in and out; the only place, with the NIfTI importer, where RAS and (i, j, k) exist."""

import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from isal.isal_zlib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.wrapstruct import WrapStructError

from consilium.errors import DataError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
IJK_FROM_ZYX = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
COMPRESSION_LEVEL = 1
"""Of ISA-L's gzip: CT noise compresses little better at higher levels, which take longer."""
NIFTI2_HEADER_BYTES = 540
UNREADABLE: tuple[Any, ...] = (
    *(ImageFileError, WrapStructError, OSError, EOFError, ValueError, AttributeError, IsalError, MemoryError),
)


def nifti_affine(affine: Affine) -> FloatArray:
    """(4, 4) from (i, j, k) to RAS millimetres, as NIfTI stores it."""
    matrix: FloatArray = RAS_FROM_LPS @ affine.matrix @ IJK_FROM_ZYX
    return matrix


def affine_from_nifti(matrix: FloatArray) -> Affine:
    """The inverse of `nifti_affine`."""
    return Affine(RAS_FROM_LPS @ np.asarray(matrix, dtype=np.float64) @ IJK_FROM_ZYX)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as ``.nii.gz``: the same bytes for the same content (no time stamp, no file name).

    NIfTI keeps the affine in single precision; ``case.json`` keeps it exactly.
    """
    array = volume.array.view(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    # The array is C-contiguous in (Z, Y, X), which is Fortran order in (i, j, k): written without a copy.
    _write(path, array, nibabel.Nifti1Image(array.transpose(2, 1, 0), nifti_affine(volume.grid.affine)))


def write_displacements(path: Path, displacement_lps_mm: FloatArray, grid: Grid) -> None:
    """Write a displacement field as ``.nii.gz`` of intent DISPVECT: (i, j, k, 1, 3), RAS components in mm.

    This is the standard's own convention; ITK and what is built on it turn the components to LPS on reading.

    Args:
        path: The file; replaced if it is there.
        displacement_lps_mm: (3, Z, Y, X): x, y, z, from a point of this grid to where it came from.
        grid: Of the field.

    Source:
        NIfTI-1 standard, nifti1.h, NIFTI_INTENT_DISPVECT (1006).
    """
    ras = np.asarray(displacement_lps_mm * np.array([-1, -1, 1]).reshape(3, 1, 1, 1), dtype=np.float32)
    five = ras[:, None].transpose(4, 3, 2, 1, 0)
    image = nibabel.Nifti1Image(five, nifti_affine(grid.affine))
    image.header.set_intent("displacement vector")
    _write(path, ras, image)


def _write(path: Path, array: Array, image: nibabel.Nifti1Image) -> None:
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    image.set_sform(image.affine, code=1)
    image.set_qform(None, code=0)
    header = image.header.copy()
    header["vox_offset"] = 352
    with path.open("wb") as raw, igzip.IGzipFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        file.write(contiguous.reshape(-1).view(np.uint8).data)


def read_nifti(path: Path) -> Volume:
    """Read a 3D NIfTI file; scaling is applied, integer data stays integer where it is not scaled.

    Raises:
        DataError: If it is no readable 3D NIfTI file, or carries no position in the patient.
    """
    try:
        if path.name.endswith(".gz"):
            with igzip.open(path) as stream:
                image, array = _image_and_array(_open_stream(stream))
        else:
            image, array = _image_and_array(nibabel.load(path))
        shape = image.shape
    except UNREADABLE as error:
        raise DataError(
            f"{path.name}: must be a readable NIfTI file; {type(error).__name__} on reading it. "
            "Copy or convert the file again."
        ) from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise DataError(f"{path.name}: must be a 3D image; found shape {shape}. Export one image per file.")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise DataError(
            f"{path.name}: must say where it lies in the patient (sform or qform); both codes are 0. "
            "Convert it again with a tool that keeps the orientation."
        )
    volume = np.ascontiguousarray(array.transpose(2, 1, 0))
    z, y, x = volume.shape
    return Volume(volume, Grid((z, y, x), affine_from_nifti(image.affine)))


def _open_stream(stream: Any) -> Any:
    """A compressed image, read by ISA-L's gzip: 2.5 times as fast as the one that nibabel would take."""
    start = int.from_bytes(stream.read(4), "little")
    stream.seek(0)
    big_endian = int.from_bytes(start.to_bytes(4, "little"), "big")
    kind = nibabel.Nifti2Image if NIFTI2_HEADER_BYTES in {start, big_endian} else nibabel.Nifti1Image
    return kind.from_stream(stream)


def _image_and_array(image: Any) -> tuple[Any, Array]:
    scaled = image.dataobj.slope not in (1, None) or image.dataobj.inter not in (0, None)
    return image, np.asarray(image.dataobj, dtype=np.float32) if scaled else np.asanyarray(image.dataobj)


def content_sha256(array: Array) -> str:
    """Digest of an array's shape, dtype and values, independent of how the file was compressed."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
