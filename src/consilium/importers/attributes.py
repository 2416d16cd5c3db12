"""Some attributes of a DICOM file, found by walking over its elements without parsing the rest.

A scan of a hospital's export opens every file; pydicom's full parse takes six times as long.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from consilium.errors import RefusedInput
from consilium.importers.dicom_file import EXPORT_AGAIN, PIXEL_DATA, check_uid, read_header, reading

CHUNK_BYTES = 2**15
NOT_WALKED = frozenset({str(DeflatedExplicitVRLittleEndian), str(ExplicitVRBigEndian), "1.2.840.113619.5.2"})
"""Left to pydicom: deflated, big endian, and GE's private mixture of both endiannesses."""
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
BINARY_KEYWORDS = frozenset(
    {"SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
     "PixelPaddingValue", "PixelPaddingRangeLimit"}
)  # fmt: skip
"""Stored as 16-bit numbers; the others are stored as text."""
MAX_ELEMENTS = 5_000_000
UNDEFINED = 0xFFFFFFFF
TRANSFER_SYNTAX, SOP_CLASS_IN_FILE, SOP_INSTANCE_IN_FILE = 0x00020010, 0x00020002, 0x00020003
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
RADIOTHERAPY = range(0x30020000, 0x30110000)
"""Groups that no image has: a walk that meets them is over."""

_SHORT = Struct("<HH2sH").unpack_from
_PLAIN = Struct("<HHL").unpack_from
_LONG = Struct("<L").unpack_from


@dataclass(frozen=True)
class Attributes:
    """Values as they are stored, by tag, and where the pixels start.

    Args:
        values: Tag -> bytes: text, or little-endian 16-bit numbers (`BINARY_KEYWORDS`).
        pixel_data_at: Position of the PixelData element; None if there is none or it is deflated.
        where: How messages call the file.
    """

    values: dict[int, bytes] = field(default_factory=dict)
    pixel_data_at: int | None = None
    where: str = "DICOM file"

    def __contains__(self, keyword: str) -> bool:
        return _tag(keyword) in self.values

    def text(self, keyword: str) -> str:
        """The value as text without padding, undecoded: for codes and keys; "" if missing or empty."""
        return self._text(_tag(keyword))

    def decoded_text(self, keyword: str) -> str:
        """As `text`, read in the file's own character set: the same in whatever set it is written."""
        sets = [part.strip() for part in self.text("SpecificCharacterSet").split("\\")]
        with reading(self.where):
            text = str(decode_bytes(self.values.get(_tag(keyword), b""), convert_encodings(sets), set()))
        return text.strip("\0 ")

    def _text(self, tag: int) -> str:
        return self.values.get(tag, b"").decode("latin-1").strip("\0 ")

    @property
    def transfer_syntax_uid(self) -> str:
        """Encoding of the file; implicit little endian where it does not say."""
        return self._text(TRANSFER_SYNTAX) or str(ImplicitVRLittleEndian)

    @property
    def sop_class_uid(self) -> str:
        """The kind of object, from the file's own copy where de-identification blanked it."""
        return self.text("SOPClassUID") or self._text(SOP_CLASS_IN_FILE)

    @property
    def sop_instance_uid(self) -> str:
        """The instance's UID, from the file's own copy where de-identification blanked it."""
        uid = self.text("SOPInstanceUID") or self._text(SOP_INSTANCE_IN_FILE)
        return check_uid(uid, what="SOPInstanceUID", where=self.where)

    def uid(self, keyword: str) -> str:
        """A UID, or "" where there is none.

        Raises:
            RefusedInput: If there is something that is no UID.
        """
        value = self.text(keyword)
        return check_uid(value, what=keyword, where=self.where) if value else ""

    def decimals(self, keyword: str, count: int) -> tuple[float, ...]:
        """The ``count`` finite numbers of an attribute.

        Raises:
            RefusedInput: If it is missing, of another length, or not finite.
        """
        parts = [part for part in self.text(keyword).split("\\") if part.strip()]
        with reading(self.where):
            numbers = tuple(float(part) for part in parts)
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise RefusedInput(
                self.where,
                f"{keyword} must hold finite numbers, {count} of them; found {numbers or 'none'}.",
                EXPORT_AGAIN,
            )
        return numbers

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number; ``default`` where it is missing or empty.

        Raises:
            RefusedInput: If it is no number, or missing without default.
        """
        value = self.values.get(_tag(keyword), b"")
        if keyword in BINARY_KEYWORDS and len(value) >= 2:
            return int.from_bytes(value[:2], "little")
        if keyword not in BINARY_KEYWORDS and value.strip(b"\0 "):
            return int(self.decimals(keyword, 1)[0])
        if default is None:
            raise RefusedInput(self.where, f"{keyword} must hold a number; found none.", EXPORT_AGAIN)
        return default

    @classmethod
    def from_dataset(cls, dataset: Dataset, where: str, pixel_data_at: int | None = None) -> "Attributes":
        """The same from attributes that pydicom has parsed, their text in UTF-8; sequences are left out."""
        values = {}
        with reading(where):
            elements: Iterator[Any] = iter([*getattr(dataset, "file_meta", []), *dataset])
            for element in elements:
                if element.VR != "SQ" and not element.is_empty:
                    values[int(element.tag)] = _stored(element)
        values[_tag("SpecificCharacterSet")] = b"ISO_IR 192"
        return cls(values, pixel_data_at, where)


def _stored(element: Any) -> bytes:
    if keyword_for_tag(element.tag) in BINARY_KEYWORDS:
        return int(element.value).to_bytes(4, "little", signed=int(element.value) < 0)[:2]
    if isinstance(element.value, bytes):
        return element.value
    several = element.VM > 1
    return "\\".join(map(str, element.value) if several else [str(element.value)]).encode("utf-8", "replace")


def read_attributes(path: Path, tags: Collection[int], where: str = "DICOM file") -> Attributes:
    """The attributes ``tags`` of the top level, and the position of the pixels.

    Raises:
        RefusedInput: If the file is damaged, hostile or no DICOM.
    """
    with reading(where), path.open("rb", buffering=0) as file:
        walked = _walk(file, tags)
    if walked is not None:
        return Attributes(*walked, where)
    dataset, position, stopped = read_header(path, tags=list(tags), stop_at=PIXEL_DATA, where=where)
    deflated = str(dataset.file_meta.get("TransferSyntaxUID", "")) == str(DeflatedExplicitVRLittleEndian)
    found = stopped == PIXEL_DATA
    # Deflated pixels have no position in the file; whoever reads them inflates it again.
    return Attributes.from_dataset(dataset, where, (0 if deflated else position) if found else None)


def _walk(file: BinaryIO, tags: Collection[int]) -> tuple[dict[int, bytes], int | None] | None:
    """Values and the position of PixelData; None where pydicom must read the file."""
    chunk, base, at = file.read(CHUNK_BYTES), 0, 132
    if chunk[128:132] != b"DICM":
        return None
    values: dict[int, bytes] = {}
    explicit, in_meta, depth = True, True, 0
    for _ in range(MAX_ELEMENTS):
        if at + 12 > base + len(chunk):
            base = at
            file.seek(base)
            chunk = file.read(CHUNK_BYTES)
            if len(chunk) < 8:
                return values, None
        here = at - base
        group, element, vr, length = _SHORT(chunk, here)
        if in_meta and group != 2:
            in_meta = False
            syntax = values.get(TRANSFER_SYNTAX, b"").strip(b"\0 ").decode("latin-1")
            if not syntax or syntax in NOT_WALKED:
                return None
            explicit = syntax != str(ImplicitVRLittleEndian)
        tag = group << 16 | element
        size = 8
        if explicit and group != 0xFFFE:
            if vr in LONG_VRS:
                if here + 12 > len(chunk):
                    return values, None
                (length,), size = _LONG(chunk, here + 8), 12
            elif not vr.isalpha():
                return None
        else:
            _, _, length = _PLAIN(chunk, here)
        if depth == 0 and (tag >= PIXEL_DATA or tag in RADIOTHERAPY):
            return values, at if tag == PIXEL_DATA else None
        at += size
        if length == UNDEFINED:
            if explicit and vr == b"UN":
                return None
            depth += 1
        elif tag in (ITEM_END, SEQUENCE_END):
            depth -= 1
        else:
            if depth == 0 and (tag in tags or in_meta):
                value = chunk[here + size : here + size + length]
                if len(value) < length:
                    return None
                values[tag] = value
            at += length
    raise ValueError("too many elements")


def _tag(keyword: str) -> int:
    tag: int | None = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag
