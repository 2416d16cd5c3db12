"""What is known of one case, as immutable records that mirror ``case.json``."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from consilium.errors import DatasetError
from consilium.geometry.volume import Grid
from consilium.types import Triple

CASE_FORMAT = "consilium-case"
CASE_VERSION = 1
CASE_ID = re.compile(r"case-[0-9a-f]{16}")
PATIENT_ID = re.compile(r"patient-[0-9a-f]{16}")
MODEL_READER = "model-"
"""How the pseudonym of a reader begins that is a model; its digest follows."""
MAX_NAME_LENGTH = 64
"""Of a structure or reader: DICOM's limit for the value representation LO (PS3.5 table 6.2-1)."""


class State(StrEnum):
    """What is known of a structure in a case. Only `UNKNOWN` says nothing about the voxels."""

    CONTOURED = "contoured"
    ABSENT = "absent"
    UNKNOWN = "unknown"


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be a structure's or reader's name, else raise `DatasetError`."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise DatasetError(
            f"{what}: a name must have 1 to {MAX_NAME_LENGTH} printable characters and no space at its ends; "
            f"got {len(name)} characters."
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What one reader says of one structure.

    Args:
        structure: Name.
        reader: Pseudonym of who drew it, e.g. ``"clinical"``, ``"reader-1"``, or of how it was derived from
            several readers, e.g. ``"agreement-2"``.
        state: CONTOURED has a mask; ABSENT means the reader looked and it is not there.
        file: Mask relative to the case's folder; None unless contoured. Voxels other than 0 are inside; where
            the structure has `Instance` records, the value is the instance's number.
        content_sha256: Digest of the mask's content; None unless contoured.
        voxels: Number of voxels inside; 0 is legal for a contoured structure (smaller than a voxel).
        volume_cm3: ``voxels`` times the voxel volume.
        derived: Whether it was computed from other annotations, so that it is no reader of its own.
        doubt: Of a model that drew it: one minus the Dice that it expects; None where nobody estimated it.
    """

    structure: str
    reader: str
    state: State
    file: str | None = None
    content_sha256: str | None = None
    voxels: int = 0
    volume_cm3: float = 0.0
    derived: bool = False
    doubt: float | None = None

    def __post_init__(self) -> None:
        check_name(self.structure, "structure")
        check_name(self.reader, "reader")
        if self.doubt is not None and not 0 <= self.doubt <= 1:
            raise DatasetError(
                f"annotation of {self.structure!r}: doubt must lie in 0 to 1; got {self.doubt}."
            )
        has_mask = self.file is not None and self.content_sha256 is not None
        if has_mask != (self.state is State.CONTOURED):
            raise DatasetError(
                f"annotation of {self.structure!r}: a mask file must be there exactly if the state is "
                f"contoured; found state {self.state} and file {self.file!r}."
            )

    @property
    def proposed(self) -> bool:
        """Whether a model drew it: a proposal, which counts as nobody's contour unless it is asked for."""
        return self.reader.startswith(MODEL_READER)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One of several things of the same structure, e.g. one nodule.

    Args:
        structure: Name, e.g. ``"Nodule"``.
        number: From 1; the value of its voxels in the masks of this structure.
        centre_lps_mm: Centre of mass.
        diameter_mm: Of the sphere of the same volume, unless the importer's documentation says otherwise.
        readers: Who saw it.
        ratings: Reader -> characteristic -> value, e.g. ``{"reader-1": {"malignancy": 4}}``.
    """

    structure: str
    number: int
    centre_lps_mm: Triple
    diameter_mm: float
    readers: tuple[str, ...] = ()
    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.structure, "structure")
        object.__setattr__(self, "centre_lps_mm", tuple(float(v) for v in self.centre_lps_mm))
        object.__setattr__(self, "readers", tuple(self.readers))
        if self.number < 1 or not all(map(math.isfinite, (*self.centre_lps_mm, self.diameter_mm))):
            raise DatasetError(
                f"instance {self.number} of {self.structure!r}: number must be at least 1, centre and "
                f"diameter finite; got {self.centre_lps_mm} mm and {self.diameter_mm} mm."
            )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a person should know about a case that was imported all the same.

    Args:
        code: Stable word for programs, e.g. ``"missing-references"``.
        message: What was found, with values and units, without identifiers.
        remedy: What can be done about it.
    """

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a case came from, without identifying anybody.

    Args:
        importer: Kind of source, e.g. ``"dicom-series+rtstruct"``.
        consilium_version: Version that imported it.
        source_sha256: Role -> digest of the source's bytes, e.g. ``{"series": …, "rtstruct": …}``.
        scanner: Facts from the importer's allow-list, e.g. ``{"Manufacturer": …, "KVP": 120.0}``.
    """

    importer: str
    consilium_version: str
    source_sha256: Mapping[str, str]
    scanner: Mapping[str, str | float]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """The image of a case: where it lies, its kind and its grid (authoritative, in full precision)."""

    file: str
    modality: str
    unit: str
    dtype: str
    grid: Grid
    content_sha256: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with everything that was said about it; mirrors ``case.json``.

    Args:
        case_id: Keyed pseudonym of the image series.
        patient_id: Keyed pseudonym of the patient; splits go by it.
        image: The image.
        annotations: At most one per structure and reader.
        instances: Of the structures that have several things.
        provenance: Origin.
        findings: What the importer noticed.

    Raises:
        DatasetError: If an id is no pseudonym, or a structure and reader stand twice.
    """

    case_id: str
    patient_id: str
    image: ImageRecord
    annotations: tuple[Annotation, ...]
    provenance: Provenance
    instances: tuple[Instance, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        if not CASE_ID.fullmatch(self.case_id) or not PATIENT_ID.fullmatch(self.patient_id):
            raise DatasetError("case: case_id and patient_id must be keyed pseudonyms; found another form.")
        seen = set()
        for annotation in self.annotations:
            key = (annotation.structure, annotation.reader)
            if key in seen:
                raise DatasetError(
                    f"{self.case_id}: a reader may annotate a structure once; {key[1]!r} annotates "
                    f"{key[0]!r} twice."
                )
            seen.add(key)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that are contoured or absent here, sorted; proposals do not count."""
        known = {a.structure for a in self.annotations if a.state is not State.UNKNOWN and not a.proposed}
        return tuple(sorted(known))

    def readers(self, structure: str) -> tuple[str, ...]:
        """Who contoured ``structure``, in the record's order; derived ones last, proposals not at all."""
        found = [a for a in self._said(structure) if a.state is State.CONTOURED]
        return tuple(a.reader for a in sorted(found, key=lambda a: a.derived))

    def annotation(self, structure: str, reader: str | None = None) -> Annotation | None:
        """What ``reader`` says of ``structure``; None if nothing.

        Without ``reader``: the first contoured one that is not derived, else the first that says absent;
        never a model's.
        """
        if reader is not None:
            mine = (a for a in self.annotations if a.structure == structure and a.reader == reader)
            return next(mine, None)
        rank = {State.CONTOURED: 0, State.ABSENT: 1, State.UNKNOWN: 2}
        return min(self._said(structure), key=lambda a: (rank[a.state], a.derived), default=None)

    def state(self, structure: str, reader: str | None = None) -> State:
        """What is known of ``structure``; UNKNOWN where nobody (or not this reader) says anything.

        Without ``reader``: contoured if anybody contoured it, else absent if anybody says so.
        """
        annotation = self.annotation(structure, reader)
        return State.UNKNOWN if annotation is None else annotation.state

    def _said(self, structure: str) -> list[Annotation]:
        return [a for a in self.annotations if a.structure == structure and not a.proposed]


def case_to_json(case: Case) -> dict[str, Any]:
    """The content of ``case.json``."""
    return {
        "format": CASE_FORMAT,
        "version": CASE_VERSION,
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "image": {
            "file": case.image.file,
            "modality": case.image.modality,
            "unit": case.image.unit,
            "dtype": case.image.dtype,
            **case.image.grid.to_json(),
            "content_sha256": case.image.content_sha256,
        },
        "structures": {
            name: str(case.state(name)) for name in sorted({a.structure for a in case.annotations})
        },
        "annotations": [_without_none(vars(a) | {"state": str(a.state)}) for a in case.annotations],
        "instances": [
            vars(i)
            | {
                "centre_lps_mm": list(i.centre_lps_mm),
                "readers": list(i.readers),
                "ratings": {reader: dict(values) for reader, values in i.ratings.items()},
            }
            for i in case.instances
        ],
        "provenance": {
            "importer": case.provenance.importer,
            "consilium_version": case.provenance.consilium_version,
            "source_sha256": dict(case.provenance.source_sha256),
            "scanner": dict(case.provenance.scanner),
        },
        "findings": [dict(vars(f)) for f in case.findings],
    }


def case_from_json(record: Mapping[str, Any]) -> Case:
    """The inverse of `case_to_json`.

    Raises:
        DatasetError: If the record is of another format or version, or breaks a rule of its parts.
    """
    if record.get("format") != CASE_FORMAT or record.get("version") != CASE_VERSION:
        raise DatasetError(
            f"case record: must be of format {CASE_FORMAT!r} version {CASE_VERSION}; found "
            f"{record.get('format')!r} version {record.get('version')!r}."
        )
    try:
        image = dict(record["image"])
        grid = Grid.from_json({key: image.pop(key) for key in ("shape_zyx", "affine_lps")})
        return Case(
            case_id=record["case_id"],
            patient_id=record["patient_id"],
            image=ImageRecord(grid=grid, **image),
            annotations=tuple(Annotation(**{**a, "state": State(a["state"])}) for a in record["annotations"]),
            instances=tuple(Instance(**i) for i in record["instances"]),
            provenance=Provenance(**record["provenance"]),
            findings=tuple(Finding(**f) for f in record["findings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"case record: a field is missing or of a wrong kind: {error}.") from error


def _without_none(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}
