"""From stored pixels to Hounsfield units: exact, one slice at a time, straight into the volume's array."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from consilium.errors import RefusedInput
from consilium.importers.dicom_file import PIXEL_DATA, decoding_plugin, read_dicom, reading
from consilium.types import Array

PLAIN_SYNTAXES = frozenset({str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)})
AIR_HU = -1024
INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1
LONG_HEADER_VRS = (b"OW", b"OB", b"UN", b"OL", b"OV")

TRUNCATED = "The file is cut off: copy or export the series again."


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How the pixels of a slice are stored (DICOM PS3.3 C.7.6.3).

    Args:
        shape_yx: Rows and columns.
        bits_allocated, bits_stored: Per pixel.
        signed: Pixel Representation.
        transfer_syntax_uid: Encoding of the file.
        padding: Lowest and highest stored value that stands for no measurement; None if there is none.
    """

    shape_yx: tuple[int, int]
    bits_allocated: int
    bits_stored: int
    signed: bool
    transfer_syntax_uid: str
    padding: tuple[int, int] | None = None

    @property
    def frame_bytes(self) -> int:
        """Of one uncompressed slice."""
        return self.shape_yx[0] * self.shape_yx[1] * self.bits_allocated // 8

    @property
    def is_plain(self) -> bool:
        """Whether a slice's bytes are its 16-bit pixels as they stand."""
        return self.bits_allocated == 16 and self.transfer_syntax_uid in PLAIN_SYNTAXES


@dataclass(frozen=True, kw_only=True)
class StoredSlice:
    """Where the pixels of one slice lie and what they mean.

    Args:
        path: The file.
        frame_index: From 0, within the file.
        pixel_data_at: Position of the PixelData element, where it is plain; else None.
        slope, intercept: HU = slope · stored + intercept.
        format: How the pixels are stored.
    """

    path: Path
    frame_index: int
    pixel_data_at: int | None
    slope: float
    intercept: float
    format: PixelFormat

    @property
    def is_integral(self) -> bool:
        """Whether whole stored values give whole units."""
        return self.slope.is_integer() and self.intercept.is_integer()


class BeyondInt16(Exception):
    """The values of a slice do not fit 16 bits; the series is read as float32 instead."""


class SliceReader:
    """Reads slices of one series; keeps the last compressed file open so that its frames are parsed once."""

    def __init__(self, where: str, *, clip_padding: bool) -> None:
        self._where = where
        self._clip_padding = clip_padding
        self._opened: tuple[Path, FileDataset] | None = None

    def read(self, stored: StoredSlice, into: Array) -> None:
        """Fill ``into`` (Y, X), int16 or float32, with the slice in its unit.

        Padding that would come out below -1024 HU, which nothing measures, becomes -1024.

        Raises:
            RefusedInput: If the pixels are cut off or cannot be decoded.
            BeyondInt16: If ``into`` is int16 and the values do not fit.
        """
        if stored.pixel_data_at is not None and into.dtype == np.int16 and into.flags.c_contiguous:
            raw = into if stored.format.signed else into.view(np.uint16)
            self._read_plain(stored, stored.pixel_data_at, raw)
        elif stored.pixel_data_at is not None:
            raw = np.empty(into.shape, dtype=np.int16 if stored.format.signed else np.uint16)
            self._read_plain(stored, stored.pixel_data_at, raw)
        else:
            raw = self._decode(stored)
        self._rescale(raw, stored, into)

    def _read_plain(self, stored: StoredSlice, at: int, raw: Array) -> None:
        with reading(self._where), stored.path.open("rb", buffering=0) as file:
            file.seek(at)
            header, length = _element_header(file.read(12))
            needed = (stored.frame_index + 1) * stored.format.frame_bytes
            file.seek(at + header + stored.frame_index * stored.format.frame_bytes)
            target = memoryview(raw.reshape(-1).view(np.uint8).data)
            got = 0
            while length >= needed and got < len(target):
                count = file.readinto(target[got:])
                if not count:
                    break
                got += count
        if got < len(target):
            missing = needed - length if length < needed else len(target) - got
            raise RefusedInput(
                self._where,
                f"a slice must have {len(target)} bytes of pixels; {missing} are missing.",
                TRUNCATED,
                code="truncated-pixels",
            )
        _correct_unused_bits(raw, stored.format)

    def _decode(self, stored: StoredSlice) -> Array:
        with reading(self._where):
            if self._opened is None or self._opened[0] != stored.path:
                self._opened = (stored.path, read_dicom(stored.path, where=self._where))
            dataset = self._opened[1]
            many = int(dataset.get("NumberOfFrames") or 1) > 1
            index = stored.frame_index if many else None
            plugin = decoding_plugin(dataset)
            raw = np.asarray(pixel_array(dataset, index=index, raw=True, decoding_plugin=plugin))
        if raw.shape != stored.format.shape_yx:
            raise RefusedInput(
                self._where,
                f"decoded pixels must have {stored.format.shape_yx} rows and columns; found {raw.shape}.",
                "Export the series again, uncompressed.",
            )
        return raw

    def _rescale(self, raw: Array, stored: StoredSlice, into: Array) -> None:
        padded = _padded(raw, stored) if self._clip_padding else None
        if into.dtype == np.int16:
            if not stored.is_integral:
                raise BeyondInt16
            _rescale_integers(raw, int(stored.slope), int(stored.intercept), into)
        else:
            into[...] = raw.astype(np.float64) * stored.slope + stored.intercept
        if padded is not None:
            into[padded] = AIR_HU


def _element_header(head: bytes) -> tuple[int, int]:
    """Bytes of the PixelData element's header, and of its value (DICOM PS3.5 7.1.2 and 7.1.3)."""
    if int.from_bytes(head[:2], "little") << 16 | int.from_bytes(head[2:4], "little") != PIXEL_DATA:
        raise ValueError("no PixelData here")
    if head[4:6] in LONG_HEADER_VRS:
        return 12, int.from_bytes(head[8:12], "little")
    return 8, int.from_bytes(head[4:8], "little")


def _correct_unused_bits(raw: Array, layout: PixelFormat) -> None:
    """Extend the sign of signed values over the unused high bits, and clear those of unsigned ones."""
    unused = 16 - layout.bits_stored
    if unused:
        np.left_shift(raw, unused, out=raw)
        np.right_shift(raw, unused, out=raw)


def _padded(raw: Array, stored: StoredSlice) -> Array | None:
    """Where the padding is that would come out below air; None if nowhere."""
    if stored.format.padding is None:
        return None
    low, high = stored.format.padding
    if max(low * stored.slope, high * stored.slope) + stored.intercept >= AIR_HU:
        return None
    padded: Array = raw == low if low == high else (raw >= low) & (raw <= high)
    return padded if padded.any() else None


def _rescale_integers(raw: Array, slope: int, intercept: int, into: Array) -> None:
    ends = [int(raw.min()) * slope + intercept, int(raw.max()) * slope + intercept]
    if min(ends) < INT16_MIN or max(ends) > INT16_MAX:
        raise BeyondInt16
    if slope == 1 and raw.dtype in (np.int16, np.uint16):
        # Sums modulo 2**16 are right because the ends fit.
        signed = raw.view(np.int16)
        if intercept:
            np.add(signed, np.array(intercept).astype(np.int16), out=into)
        elif signed.ctypes.data != into.ctypes.data:
            into[...] = signed
    else:
        into[...] = raw.astype(np.int64) * slope + intercept
