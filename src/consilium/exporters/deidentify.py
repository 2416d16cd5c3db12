"""De-identified copies of CT, RTSTRUCT, SEG and RT dose; one keyed map of UIDs keeps their references."""

import hashlib
import hmac
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

import consilium
from consilium.cases.files import write_atomically
from consilium.errors import ConfigurationError, RefusedInput
from consilium.exporters.deidentify_rules import (
    CODE_VALUES,
    FIXED,
    NAMES,
    NUMERIC_BYTES,
    TAG_KIND,
    VENDORS,
)
from consilium.types import Progress, no_progress

LABELMAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
ACCEPTED = {
    str(CTImageStorage): "CT",
    str(RTStructureSetStorage): "RTSTRUCT",
    str(SegmentationStorage): "SEG",
    LABELMAP_SEGMENTATION: "SEG",
    str(RTDoseStorage): "RTDOSE",
}
CT_NEEDS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope")
MIN_KEY_BYTES = 16
MAX_DEPTH = 16
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    OverflowError,
    RecursionError,
    NotImplementedError,
)
"""What pydicom raises on damaged files."""
STANDARD_ROOT = "1.2.840.10008."
METHOD = f"consilium {consilium.__version__}: keep-list after PS3.15 Basic Profile"


@dataclass(frozen=True)
class Deidentifier:
    """Makes copies without identity; the same key gives the same pseudonyms and UIDs in every run.

    Args:
        key: At least 16 secret bytes. Who has it can check a guess, so it stays in the hospital.
        name_of: Makes a safe name of a structure's name, or None where it cannot; the structure is then
            called by its number, as are further structures of the same name. It must not pass on what it
            does not understand.

    Raises:
        ConfigurationError: If the key is too short.
    """

    key: bytes = field(repr=False)
    name_of: Callable[[str], str | None] = field(default=lambda name: None, repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < MIN_KEY_BYTES:
            raise ConfigurationError(f"key: must have at least {MIN_KEY_BYTES} bytes; got {len(self.key)}.")

    def uid(self, original: str) -> str:
        """The UID that stands for ``original``, under the root 2.25 (PS3.5 B.2); the standard's own stay."""
        if original.startswith(STANDARD_ROOT):
            return original
        return f"2.25.{int.from_bytes(self._digest('uid', original)[:16], 'big')}"

    def patient(self, original: str) -> str:
        """The pseudonym of a patient's id, whoever issued it: not every object of a patient says who did."""
        return f"patient-{self._digest('patient', original).hex()[:16]}"

    def copy(self, source: Dataset) -> Dataset:
        """A de-identified copy of an object.

        Raises:
            RefusedInput: If it is no CT slice, RTSTRUCT, SEG or RT dose, or may show text in its pixels.
        """
        kind = check_accepted(source)
        if source.file_meta.TransferSyntaxUID.is_compressed and "PixelData" in source:
            _decompress(source)
        copy = self._copy_items(source, depth=0)
        if "PixelData" in copy:
            copy.PixelData = _trimmed(source)
        copy.PatientID = copy.PatientName = self.patient(str(source.get("PatientID") or ""))
        copy.Manufacturer = _vendor(str(source.get("Manufacturer", "")))
        for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
            setattr(copy, keyword, "")
        copy.PatientBirthDate = copy.PatientSex = ""
        copy.PatientIdentityRemoved = "YES"
        copy.DeidentificationMethod = METHOD
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        copy.DeidentificationMethodCodeSequence = [code]
        copy.LongitudinalTemporalInformationModified = "REMOVED"
        copy.Modality = kind
        copy.file_meta = _meta(copy)
        return copy

    def _copy_items(self, source: Dataset, depth: int) -> Dataset:
        if depth > MAX_DEPTH:
            raise RefusedInput(
                "object", f"sequences must not be nested over {MAX_DEPTH} deep.", "Leave it out."
            )
        copy = Dataset()
        for tag in sorted(source.keys()):
            kind = TAG_KIND.get(int(tag))
            if kind is not None:
                self._copy_element(source, copy, int(tag), kind, depth)
        _copy_code(source, copy)
        return copy

    def _copy_element(self, source: Dataset, copy: Dataset, tag: int, kind: str, depth: int) -> None:
        keyword = keyword_for_tag(tag)
        if kind == "number":
            _copy_number(source, copy, tag)
        elif kind == "sequence":
            items = source[tag].value or []
            copies = [self._copy_items(item, depth + 1) for item in items]
            _number_twins(items, copies)
            setattr(copy, keyword, copies)
        elif kind in ("uid", "standard-uid"):
            text = str(source[tag].value or "")
            if kind == "uid" and text:
                setattr(copy, keyword, self.uid(text))
            elif UID(text).name != text:
                setattr(copy, keyword, text)
        elif kind == "code":
            values = source[tag].value
            values = [values] if isinstance(values, str) else list(values or [])
            kept = [str(value) for value in values if str(value) in CODE_VALUES]
            if kept or not values:
                setattr(copy, keyword, kept)
        elif kind == "name":
            setattr(copy, keyword, self._name(source, str(source[tag].value or "")))
        elif kind == "pixels":
            copy.add(source[tag])
        else:
            setattr(copy, keyword, FIXED.get(keyword, ""))

    def _name(self, item: Dataset, original: str) -> str:
        return (self.name_of(original) or _numbered(item))[:64]

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{original.strip()}".encode(), hashlib.sha256).digest()


def deidentify_folder(
    paths: Iterable[Path], out: Path, deidentifier: Deidentifier, *, progress: Progress = no_progress
) -> list[RefusedInput]:
    """Write de-identified copies of DICOM files: ``out/patient-…/MODALITY-…/….dcm``.

    Files that are no DICOM are passed over. A file that cannot be read or must not leave is refused; the
    others are written. Nothing of a source's path or file name is used.

    Returns:
        What was refused, by its place in the list of files, with reason and remedy.
    """
    files = list(paths)
    refused: list[RefusedInput] = []
    written: dict[Path, bytes] = {}
    for number, path in enumerate(files, 1):
        progress("de-identifying", number, len(files))
        try:
            copy = deidentifier.copy(_read(path, number))
            target, content = out / _place_of(copy), _bytes(copy)
        except RefusedInput as refusal:
            refused.append(RefusedInput(f"file {number}", refusal.reason, refusal.remedy))
            continue
        except _NotDicom:
            continue
        except UNREADABLE as error:
            reason = f"must be readable DICOM; {type(error).__name__} on copying it."
            refused.append(RefusedInput(f"file {number}", reason, "Copy or export it again."))
            continue
        if written.setdefault(target, content_digest := hashlib.sha256(content).digest()) != content_digest:
            reason = "must have a SOP Instance UID of its own; another file of other content has the same."
            refused.append(RefusedInput(f"file {number}", reason, "Leave out the one that is not wanted."))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    return refused


def _numbered(item: Dataset) -> str:
    return f"STRUCTURE {int(item.get('ROINumber', item.get('SegmentNumber', 0)))}"


def _number_twins(items: Sequence[Dataset], copies: Sequence[Dataset]) -> None:
    """Leave each name with one structure, the one that was spelt so or else the first; number the others."""
    for keyword in NAMES:
        twins: dict[str, list[int]] = {}
        for k, copy in enumerate(copies):
            if keyword in copy:
                twins.setdefault(str(copy[keyword].value), []).append(k)
        for name, places in twins.items():
            spelt_so = (k for k in places if str(items[k][keyword].value) == name)
            keeps = next(spelt_so, places[0])
            for k in set(places) - {keeps}:
                setattr(copies[k], keyword, _numbered(items[k]))


class _NotDicom(Exception):
    """A file that is no DICOM file."""


def check_accepted(source: Dataset) -> str:
    """The kind of an object that may be copied.

    Raises:
        RefusedInput: For every other kind, and for pictures that may show text.
    """
    sop_class = str(source.get("SOPClassUID", ""))
    kind = ACCEPTED.get(sop_class)
    remedy = "Leave it out: it cannot be de-identified safely."
    if kind is None:
        name = UID(sop_class).name if sop_class.startswith(STANDARD_ROOT) else "another kind of object"
        raise RefusedInput("object", f"must be CT, RTSTRUCT, SEG or RT dose; found {name}.", remedy)
    if str(source.get("BurnedInAnnotation", "NO")).upper() != "NO":
        raise RefusedInput("object", "must have no text in its pixels; BurnedInAnnotation is not NO.", remedy)
    if "ConversionType" in source or kind != str(source.get("Modality", "")):
        raise RefusedInput("object", f"must be a true {kind}; found a converted picture.", remedy)
    if kind == "CT":
        missing = [keyword for keyword in CT_NEEDS if keyword not in source]
        words = {str(word).upper() for word in source.get("ImageType", [])}
        if missing or source.get("SamplesPerPixel") != 1:
            raise RefusedInput("object", "a CT slice must have a position and Hounsfield units.", remedy)
        if any("SCREEN" in word or "DOSE" in word or "REPORT" in word for word in words):
            raise RefusedInput(
                "object", "must be a slice; found a picture of a screen or a dose sheet.", remedy
            )
    return kind


def _read(path: Path, number: int) -> Dataset:
    try:
        source = pydicom.dcmread(path)
        if "TransferSyntaxUID" not in source.file_meta:
            raise _NotDicom
        if not source.file_meta.TransferSyntaxUID.is_little_endian:
            raise RefusedInput(f"file {number}", "must be little endian.", "Export it again.")
    except pydicom.errors.InvalidDicomError as error:
        raise _NotDicom from error
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
        RecursionError,
        NotImplementedError,
    ) as error:
        reason = f"must be readable DICOM; {type(error).__name__} on reading it."
        raise RefusedInput(f"file {number}", reason, "Copy or export it again.") from error
    return source


def _decompress(source: Dataset) -> None:
    """Compressed pixels may carry comments: only the pixels themselves are kept."""
    try:
        source.decompress(generate_instance_uid=False)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, OSError) as error:
        reason = f"its pixels must be readable; {type(error).__name__} on decompressing them."
        raise RefusedInput("object", reason, "Export it again, uncompressed.") from error


def _trimmed(source: Dataset) -> bytes:
    """The pixels, without what somebody may have put behind them."""
    frames = int(source.get("NumberOfFrames", 1) or 1)
    bits = source.Rows * source.Columns * frames * source.get("SamplesPerPixel", 1) * source.BitsAllocated
    length = int(bits + 7) // 8
    pixels = bytes(source.PixelData)[:length]
    if len(pixels) < length:
        raise RefusedInput("object", "must hold all its pixels; some are missing.", "Export it again.")
    return pixels + b"\0" * (length % 2)


def _copy_number(source: Dataset, copy: Dataset, tag: int) -> None:
    """Numbers as they are written, if they are numbers; long contours are not parsed for it."""
    raw = source.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.VR in ("DS", "IS"):
        if isinstance(raw.value, bytes) and NUMERIC_BYTES.fullmatch(raw.value):
            copy[tag] = raw
        return
    element = source[tag]
    if element.VR in ("DS", "IS"):
        values = element.value if isinstance(element.value, Iterable) else [element.value]
        text = "\\".join(str(value) for value in values if value is not None)
        if not NUMERIC_BYTES.fullmatch(text.encode()):
            return
    if element.VR not in ("OB", "OW", "UN", "LO", "SH", "LT", "UT", "ST"):
        copy.add(element)


@cache
def _meanings(scheme: str) -> dict[str, str]:
    """Code -> meaning, of one coding scheme, as the standard prints it."""
    found: dict[str, str] = {}
    for entries in concepts.get(scheme, {}).values():
        for value, (meaning, *_) in entries.items():
            found.setdefault(value, meaning)
    return found


def _copy_code(source: Dataset, copy: Dataset) -> None:
    """A code of DICOM or SNOMED with the standard's own meaning; every other code is left out."""
    if "CodeValue" not in source:
        return
    scheme, value = str(source.get("CodingSchemeDesignator", "")), str(source.CodeValue)
    meaning = _meanings(scheme).get(value) if scheme in ("DCM", "SCT") else None
    if meaning is None and scheme == "SCT" and value.isdigit() and 6 <= len(value) <= 18:
        meaning = f"SNOMED CT {value}"
    if meaning is not None:
        copy.CodeValue, copy.CodingSchemeDesignator, copy.CodeMeaning = value, scheme, meaning[:64]


def _vendor(text: str) -> str:
    """The maker's plain name if it is a known one; nothing of what else stands there."""
    words = text.lower().split()
    return next((name for name in VENDORS if name.lower() in words), "")


def _meta(copy: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = copy.SOPClassUID
    meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _place_of(copy: Dataset) -> Path:
    series = str(copy.SeriesInstanceUID)[-8:]
    return Path(str(copy.PatientID), f"{copy.Modality}-{series}", f"{copy.SOPInstanceUID}.dcm")


def _bytes(copy: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, copy, enforce_file_format=True)
    content: bytes = buffer.getvalue()
    return content
