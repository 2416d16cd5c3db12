"""Opening DICOM files that may be damaged or hostile: every fault becomes a `RefusedInput`."""

import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import RLELossless

from consilium.errors import RefusedInput

MAX_INFLATED_BYTES = 2**28
"""256 MiB: a deflated object that grows beyond is refused. The largest honest ones are bit-packed SEG."""
PIXEL_DATA = 0x7FE00010
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_LENGTH = 64

EXPORT_AGAIN = "Export or copy it again from its source."
DAMAGE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    RecursionError,
    MemoryError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on files that are not what they say."""


def short_uid(uid: str) -> str:
    """The last four characters, as messages may show them: ``"…7213"``."""
    return f"…{uid[-4:]}" if UID_PATTERN.fullmatch(uid) else "(no valid UID)"


def check_uid(value: Any, *, what: str, where: str) -> str:
    """Return ``value`` as text if it is a UID, else refuse: nothing else may become part of a path or a key.

    Raises:
        RefusedInput: If it is missing, longer than 64 characters, or holds more than digits and full stops.

    Source: DICOM PS3.5 section 9.1 (leading zeros, which some systems write, are let through).
    """
    text = "" if value is None else str(value).strip("\0 ")
    if len(text) > MAX_UID_LENGTH or not UID_PATTERN.fullmatch(text):
        found = f"{len(text)} characters of another form" if text else "none"
        raise RefusedInput(
            where,
            f"{what} must be a UID of at most {MAX_UID_LENGTH} digits and full stops; found {found}.",
            EXPORT_AGAIN,
        )
    return text


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a DICOM library raises inside into `RefusedInput`, and keep its warnings quiet.

    The libraries' own texts are not passed on: they may quote values of patient attributes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RecursionError as error:
        raise RefusedInput(where, "sequences are nested too deeply to be real.", EXPORT_AGAIN) from error
    except MemoryError as error:
        raise RefusedInput(where, "it says it is larger than the memory at hand.", EXPORT_AGAIN) from error
    except DAMAGE as error:
        raise RefusedInput(
            where, f"must be a readable DICOM object; reading fails ({type(error).__name__}).", EXPORT_AGAIN
        ) from error


class BoundedFile(io.BufferedReader):
    """A file whose remainder, when asked for as a whole, must not be a deflate bomb.

    pydicom asks for the remainder at once only to inflate it (DICOM PS3.5 section A.5), so that checking
    there covers every way a file can claim to be deflated.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "rb"))

    def read(self, size: int | None = -1, /) -> bytes:
        """Like any file's; refuses a remainder that inflates beyond `MAX_INFLATED_BYTES`."""
        if size is not None and size >= 0:
            return super().read(size)
        rest = super().read(-1)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated, pending = 0, rest
        while pending and not inflater.eof:
            inflated += len(inflater.decompress(pending, 2**20))
            pending = inflater.unconsumed_tail
            if inflated > MAX_INFLATED_BYTES:
                raise RefusedInput(
                    "DICOM file",
                    f"must not grow beyond {MAX_INFLATED_BYTES // 2**20} MiB when inflated; "
                    f"{len(rest) / 2**20:.1f} MiB grow beyond it.",
                    "Export it again without deflate compression.",
                )
        return rest


def decoding_plugin(dataset: Dataset) -> str:
    """Which decoder to use: for RLE not GDCM's, which ends the whole process on some damaged frames."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    return "pydicom" if syntax == str(RLELossless) else ""


def is_dicom(path: Path) -> bool:
    """Whether the file starts like a DICOM object, with or without the 128-byte preamble.

    Raises:
        RefusedInput: If the system does not let it be read: what is in it cannot be told.
    """
    with _from_the_disk(), path.open("rb") as file:
        head = file.read(132)
    return head[128:132] == b"DICM" or _starts_without_preamble(head)


def _starts_without_preamble(head: bytes) -> bool:
    """Old exports start at once with an early attribute of group 0008, or with the file's own group 0002."""
    early = head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\0" and head[2] <= 0x20
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) == 132 and early and (explicit or int.from_bytes(head[4:8], "little") <= 64)


def read_header(
    path: Path, *, tags: Sequence[int | str], stop_at: int = PIXEL_DATA, where: str = "DICOM file"
) -> tuple[FileDataset, int, int | None]:
    """Read some attributes without reading on to the pixels.

    Args:
        path: The file.
        tags: Tags or keywords of the attributes to keep.
        stop_at: Reading stops before the first tag at or above this one.
        where: How messages call the file; must not identify anybody.

    Returns:
        The attributes, the position of the tag at which reading stopped, and that tag (None at the file's
        end; the position means nothing in deflated files).

    Raises:
        RefusedInput: If the file is damaged, hostile or no DICOM.
    """
    stopped: list[int] = []

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if tag >= stop_at:
            stopped.append(int(tag))
            return True
        return False

    with reading(where), BoundedFile(path) as file:
        wanted = [Tag(tag) for tag in tags]
        dataset = _read(file, stop_when=stop, tags=wanted)
        return dataset, file.tell(), stopped[0] if stopped else None


def read_dicom(
    path: Path, *, tags: Sequence[int | str] | None = None, where: str = "DICOM file"
) -> FileDataset:
    """Read a whole object, or only some of its attributes; nested sequences are parsed when they are used.

    Accessing values may still find damage: do that inside ``with reading(where)``.

    Raises:
        RefusedInput: If the file is damaged, hostile or no DICOM.
    """
    with reading(where), BoundedFile(path) as file:
        return _read(file, stop_when=None, tags=None if tags is None else [Tag(tag) for tag in tags])


def _read(
    file: BoundedFile,
    *,
    stop_when: Callable[[BaseTag, str | None, int], bool] | None,
    tags: list[BaseTag] | None,
) -> FileDataset:
    head = file.read(132)
    file.seek(0)
    force = head[128:132] != b"DICM" and _starts_without_preamble(head)
    return read_partial(file, stop_when=stop_when, force=force, specific_tags=tags)


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes.

    Raises:
        RefusedInput: If the system does not let it be read.
    """
    with _from_the_disk(), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _from_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RefusedInput(
            "file",
            f"must be readable; the system refuses to read it ({type(error).__name__}).",
            "Look at its permissions and at the disk, and import again.",
        ) from error
