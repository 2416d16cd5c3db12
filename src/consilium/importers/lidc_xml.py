"""LIDC-IDRI's reading XML as records: sessions, outlines, points; nothing is placed in the CT yet."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from consilium.errors import RefusedInput
from consilium.types import Array, FloatArray

MAX_XML_BYTES = 64 * 2**20
"""The largest file of the collection has 1.3 MB."""
MAX_PIXEL = 65535
"""Rows and Columns are 16-bit numbers in DICOM (PS3.3 C.7.6.3)."""

RATINGS = {
    "subtlety": "subtlety",
    "internalStructure": "internal_structure",
    "calcification": "calcification",
    "sphericity": "sphericity",
    "margin": "margin",
    "lobulation": "lobulation",
    "spiculation": "spiculation",
    "texture": "texture",
    "malignancy": "malignancy",
}
"""Element of the XML -> name of the rating in a case."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One region of interest on one slice.

    The pixels on the line lie **outside** the nodule, whether the outline includes or excludes.

    Attributes:
        points_xy: (N, 2) whole pixel coordinates (column, row), N ≥ 1.
        inclusion: False for a hole, whose line is part of the hole.
        sop_instance_uid: Of the slice; may be empty.
        position_z_mm: Image Position (Patient), z, of the slice; NaN if the file does not say.
    """

    points_xy: Array
    inclusion: bool
    sop_instance_uid: str
    position_z_mm: float

    @property
    def is_open(self) -> bool:
        """Whether a line of three points or more does not end where it began."""
        return len(self.points_xy) > 2 and bool((self.points_xy[0] != self.points_xy[-1]).any())


@dataclass(frozen=True, eq=False)
class Reading:
    """One reader's outlines of one nodule of 3 mm or more, with the ratings (1 to 5, or 6)."""

    nodule_id: str
    outlines: tuple[Outline, ...]
    ratings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PointMark:
    """A single point: a nodule under 3 mm, or a finding of 3 mm or more that is no nodule."""

    is_nodule: bool
    point_xy: FloatArray
    sop_instance_uid: str
    position_z_mm: float


@dataclass(frozen=True, eq=False)
class Session:
    """Everything one reader marked; all empty if the reader found nothing."""

    readings: tuple[Reading, ...]
    points: tuple[PointMark, ...]

    @property
    def duplicated_ids(self) -> int:
        """How many readings carry the id of another reading of this session."""
        counts = Counter(r.nodule_id for r in self.readings)
        return sum(n - 1 for n in counts.values())

    def fingerprint(self) -> str:
        """Digest of what was marked, whatever it is called; equal sessions say the same."""
        digest = hashlib.sha256()
        for reading in self.readings:
            digest.update(f"nodule {sorted(reading.ratings.items())}".encode())
            for o in reading.outlines:
                digest.update(f"{o.sop_instance_uid} {o.position_z_mm} {o.inclusion}".encode())
                digest.update(o.points_xy.tobytes())
        for p in self.points:
            digest.update(f"{p.is_nodule} {p.sop_instance_uid} {p.position_z_mm}".encode())
            digest.update(p.point_xy.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ReadMessage:
    """One XML file.

    Attributes:
        series_instance_uid: The CT series that was read.
        served: Date and time of the reading, sortable; empty if the file does not say.
        sessions: In the file's order.
        sha256: Of the file.
    """

    series_instance_uid: str
    served: str
    sessions: tuple[Session, ...]
    sha256: str


def read_lidc_xml(path: Path) -> ReadMessage:
    """Read one file.

    Raises:
        RefusedInput: If it is no LIDC reading of a CT series, is damaged, or defines entities (which is how
            XML bombs work).
    """
    where = "LIDC XML"
    size = path.stat().st_size
    if size > MAX_XML_BYTES:
        raise RefusedInput(
            where, f"must have at most {MAX_XML_BYTES} bytes; found {size}.", "Download the file again."
        )
    content = path.read_bytes()
    try:
        root = fromstring(content)
    except DefusedXmlException as error:
        raise RefusedInput(
            where,
            f"must define no entity or document type; found {type(error).__name__}.",
            "Download the file again; do not open it with other tools.",
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise RefusedInput(where, f"must be well-formed XML; {error}.", "Download the file again.") from error
    if _name(root) != "LidcReadMessage":
        raise RefusedInput(
            where,
            f"must be a LidcReadMessage; found {_name(root)[:40]!r}.",
            "Readings of chest radiographs (IdriReadMessage) are not of a CT: leave them out.",
        )
    header = _child(root, "ResponseHeader")
    series = _text(header, "SeriesInstanceUid") if header is not None else ""
    if header is None or not series:
        raise RefusedInput(where, "must name the series it reads; it does not.", "Download the file again.")
    try:
        sessions = tuple(_session(e) for e in root if _name(e) == "readingSession")
    except (ValueError, OverflowError) as error:
        raise RefusedInput(where, f"{error}.", "Download the file again.") from error
    served = f"{_text(header, 'DateService')} {_text(header, 'TimeService')}".strip()
    return ReadMessage(series, served, sessions, hashlib.sha256(content).hexdigest())


def _session(element: Element) -> Session:
    readings: list[Reading] = []
    points: list[PointMark] = []
    for child in element:
        if _name(child) == "unblindedReadNodule":
            mark = _nodule(child)
            if isinstance(mark, Reading):
                readings.append(mark)
            elif mark is not None:
                points.append(mark)
        elif _name(child) == "nonNodule":
            locus = _child(child, "locus")
            if locus is None:
                raise ValueError("a non-nodule must have a locus; found none")
            points.append(
                PointMark(False, _point(locus), _text(child, "imageSOP_UID"), _position(child)),
            )
    return Session(tuple(readings), tuple(points))


def _nodule(element: Element) -> Reading | PointMark | None:
    """A reading if any outline has more than one point; else the point; None if there is no point at all."""
    outlines = tuple(o for e in element if _name(e) == "roi" and (o := _outline(e)) is not None)
    if not outlines:
        return None
    if max(len(o.points_xy) for o in outlines) == 1:
        first = outlines[0]
        return PointMark(True, first.points_xy[0].astype(float), first.sop_instance_uid, first.position_z_mm)
    ratings = {}
    characteristics = _child(element, "characteristics")
    for child in () if characteristics is None else characteristics:
        name = RATINGS.get(_name(child))
        if name is not None and (child.text or "").strip():
            ratings[name] = _number(child.text)
    return Reading(_text(element, "noduleID"), outlines, ratings)


def _outline(element: Element) -> Outline | None:
    points = [_point(e) for e in element if _name(e) == "edgeMap"]
    if not points:
        return None
    inclusion = _text(element, "inclusion").upper()
    if inclusion not in {"TRUE", "FALSE"}:
        raise ValueError(f"inclusion must be TRUE or FALSE; found {inclusion[:10]!r}")
    return Outline(
        np.rint(np.stack(points)).astype(np.int32),
        inclusion == "TRUE",
        _text(element, "imageSOP_UID"),
        _position(element),
    )


def _point(element: Element) -> FloatArray:
    values = [_number(_text(element, name)) for name in ("xCoord", "yCoord")]
    if min(values) < 0 or max(values) > MAX_PIXEL:
        raise ValueError(f"a pixel coordinate must lie within 0 and {MAX_PIXEL}; found {values}")
    return np.array(values)


def _position(element: Element) -> float:
    text = _text(element, "imageZposition")
    return _number(text) if text else math.nan


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"a coordinate or rating must be a finite number; found {(text or '')[:20]!r}")
    return value


def _name(element: Element) -> str:
    """The tag without its namespace: the collection has two, and files without."""
    return str(element.tag).rpartition("}")[2]


def _child(element: Element, name: str) -> Element | None:
    return next((e for e in element if _name(e) == name), None)


def _text(element: Element, name: str) -> str:
    child = _child(element, name)
    return (child.text or "").strip() if child is not None else ""
