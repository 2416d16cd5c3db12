"""Slices and masks of the cases under review, in canonical orientation; memory does not grow with cases."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset
from consilium.errors import DataError
from consilium.geometry.crop import Box, put_back
from consilium.geometry.volume import Grid, Reorientation
from consilium.types import Array, Mask

PLANES = ("axial", "coronal", "sagittal")
OPEN_CASES = 2
"""Images kept in memory; opening another case drops the one that was not used for longest."""


@dataclass(frozen=True)
class OpenImage:
    """A case's image as the page shows it: Z Superior, Y Posterior, X Left."""

    array: Array
    grid: Grid
    reorientation: Reorientation

    def slice_bytes(self, plane: str, index: int) -> tuple[bytes, int, int]:
        """One slice as little-endian int16, with its height and width.

        Coronal and sagittal slices have the superior end in the first row.

        Raises:
            DataError: If there is no such plane or slice.
        """
        if plane not in PLANES:
            raise DataError(f"plane: must be one of {', '.join(PLANES)}; got another word.")
        axis = PLANES.index(plane)
        if not 0 <= index < self.array.shape[axis]:
            raise DataError(f"slice: must lie in 0 to {self.array.shape[axis] - 1}; got {index}.")
        part = self.array.take(index, axis=axis)
        if axis > 0:
            part = part[::-1]
        rounded = np.clip(np.rint(part), -32768, 32767) if part.dtype.kind == "f" else part
        return rounded.astype("<i2").tobytes(), part.shape[0], part.shape[1]


class Images:
    """Opens images of a dataset and keeps the last `OPEN_CASES` of them."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._open: OrderedDict[str, OpenImage] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, case: Case) -> OpenImage:
        """The image of a case."""
        with self._lock:
            if case.case_id not in self._open:
                while len(self._open) >= OPEN_CASES:
                    self._open.popitem(last=False)
                volume, reorientation = self._dataset.load_image(case).to_canonical()
                self._open[case.case_id] = OpenImage(volume.array, volume.grid, reorientation)
            self._open.move_to_end(case.case_id)
            return self._open[case.case_id]

    def mask(self, case: Case, structure: str, reader: str) -> tuple[Box | None, bytes]:
        """The tight box of a mask in canonical orientation, and its voxels as bits (little-endian, C order).

        Returns:
            (None, b"") if the mask is empty.
        """
        _, reorientation = case.image.grid.to_canonical()
        mask = reorientation.apply(self._dataset.load_mask(case, structure, reader))
        box = Box.around(mask)
        if box is None:
            return None, b""
        return box, pack_bits(mask[box.slices()])

    def mask_from_page(self, case: Case, box: Box | None, bits: bytes) -> Mask:
        """The inverse of `mask`: a mask on the case's own grid.

        Raises:
            DataError: If the box leaves the image or the number of bits is not the box's.
        """
        canonical, reorientation = case.image.grid.to_canonical()
        if box is None:
            return np.zeros(case.image.grid.shape_zyx, dtype=bool)
        if min(box.start_zyx) < 0 or any(
            stop > n for stop, n in zip(box.stop_zyx, canonical.shape_zyx, strict=True)
        ):
            raise DataError(f"mask: its box must lie in the image {canonical.shape_zyx}; it leaves it.")
        mask = put_back(unpack_bits(bits, box.shape_zyx), box, canonical.shape_zyx)
        return np.ascontiguousarray(reorientation.undo(mask))


def pack_bits(mask: Mask) -> bytes:
    """A mask as bits, eight voxels a byte, first voxel in the lowest bit."""
    return np.packbits(mask.reshape(-1), bitorder="little").tobytes()


def unpack_bits(bits: bytes, shape: tuple[int, int, int]) -> Mask:
    """The inverse of `pack_bits`.

    Raises:
        DataError: If the number of bytes does not fit the shape.
    """
    count = shape[0] * shape[1] * shape[2]
    if len(bits) != -(-count // 8):
        raise DataError(f"mask: {count} voxels must come as {-(-count // 8)} bytes; got {len(bits)}.")
    packed = np.frombuffer(bits, dtype=np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").reshape(shape).astype(bool)
