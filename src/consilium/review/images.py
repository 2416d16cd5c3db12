"""Slices and masks of the cases under review, in canonical orientation; memory does not grow with cases."""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from consilium.cases.cache import CropReader, cache_key, cached_array
from consilium.cases.case import Case
from consilium.cases.dataset import Dataset
from consilium.errors import DataError
from consilium.geometry.crop import Box, put_back
from consilium.types import Array, Mask

PLANES = ("axial", "coronal", "sagittal")
SLAB = 32
"""Slices read together: the cache's block edge, so that the other 31 cost nothing more."""
KEPT_SLABS = 16
"""Of at most 16 MB each for a 512×512 image: what the server keeps, however many cases are opened."""


def image_key(case: Case) -> str:
    """Of what the page shows of an image: the same voxels lie otherwise where the grid is another."""
    grid = case.image.grid.to_json()
    return cache_key(case.image.content_sha256, purpose="review", orientation="canonical", grid=grid)


class Images:
    """Reads slices of a dataset's images from the cache, which it fills on the first opening.

    While a case is being compressed into the cache, its slices come from the array that was just read, so
    that the first slice waits for reading only.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._slabs: OrderedDict[tuple[str, int, int], Array] = OrderedDict()
        self._loading: dict[tuple[str, int, int], threading.Lock] = {}
        self._lock = threading.Lock()
        self._fresh: dict[str, Array] = {}
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")

    def open(self, case: Case) -> CropReader:
        """The image as the page shows it: int16, Z Superior, Y Posterior, X Left."""

        key = image_key(case)

        def build() -> Array:
            volume, _ = self._dataset.load_image(case).to_canonical()
            array = volume.array
            rounded = np.clip(np.rint(array), -32768, 32767) if array.dtype.kind == "f" else array
            fresh: Array = rounded.astype(np.int16, copy=False)
            with self._changed:
                self._fresh[key] = fresh
                self._changed.notify_all()
            return fresh

        try:
            return cached_array(self._dataset.cache_folder, key, build)
        finally:
            with self._changed:
                self._fresh.pop(key, None)
                self._changed.notify_all()

    def slice_bytes(self, case: Case, plane: str, index: int) -> tuple[bytes, int, int]:
        """One slice as little-endian int16, with its height and width.

        Coronal and sagittal slices have the superior end in the first row.

        Raises:
            DataError: If there is no such plane or slice.
        """
        if plane not in PLANES:
            raise DataError(f"plane: must be one of {', '.join(PLANES)}; got another word.")
        axis = PLANES.index(plane)
        length = case.image.grid.to_canonical()[0].shape_zyx[axis]
        if not 0 <= index < length:
            raise DataError(f"slice: must lie in 0 to {length - 1}; got {index}.")
        number, within = divmod(index, SLAB)
        part = self._slab(case, axis, number).take(within, axis=axis)
        self._read_ahead(case, axis, number + (1 if within >= SLAB // 2 else -1), length)
        if axis > 0:
            part = part[::-1]
        return part.astype("<i2").tobytes(), part.shape[0], part.shape[1]

    def prepare(self, case: Case) -> None:
        """Begin to read the image, for a page that is about to ask for slices; returns at once."""
        self._pool.submit(self.open, case)

    def _slab(self, case: Case, axis: int, number: int) -> Array:
        """Read by whoever asks first; others who ask meanwhile wait for that one only."""
        key = (image_key(case), axis, number)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if key in self._slabs:
                    self._loading.pop(key, None)
                    self._slabs.move_to_end(key)
                    return self._slabs[key]
            index = [slice(None)] * 3
            index[axis] = slice(number * SLAB, (number + 1) * SLAB)
            slab = self._readable(case)[tuple(index)].copy()
            with self._lock:
                self._slabs[key] = slab
                self._loading.pop(key, None)
                while len(self._slabs) > KEPT_SLABS:
                    self._slabs.popitem(last=False)
        return slab

    def _read_ahead(self, case: Case, axis: int, number: int, length: int) -> None:
        if 0 <= number * SLAB < length and (image_key(case), axis, number) not in self._slabs:
            self._ahead.submit(self._slab, case, axis, number)

    def _readable(self, case: Case) -> Array | CropReader:
        """The image as soon as a part can be read: while it is compressed, the array itself."""
        key = image_key(case)
        opening: Future[CropReader] = self._pool.submit(self.open, case)
        opening.add_done_callback(self._tell)
        with self._changed:
            self._changed.wait_for(lambda: key in self._fresh or opening.done())
            fresh = self._fresh.get(key)
        return opening.result() if fresh is None else fresh

    def _tell(self, opening: Future[CropReader]) -> None:
        with self._changed:
            self._changed.notify_all()

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
