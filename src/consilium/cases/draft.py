"""What an importer hands over: a case before it has a pseudonym and files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consilium.cases.case import Finding, Instance, State, check_name
from consilium.errors import DatasetError
from consilium.geometry.volume import Volume
from consilium.types import Array


@dataclass(frozen=True, kw_only=True)
class AnnotationDraft:
    """What one reader says of one structure, with a way to get the mask.

    Args:
        structure: Name.
        reader: Pseudonym, e.g. ``"clinical"`` or ``"reader-1"``; never a person's name.
        state: CONTOURED needs ``mask``.
        mask: Called once, when the mask is written, so that a case never holds all its masks in memory.
            Returns (Z, Y, X) on the image's grid: bool, or an unsigned integer whose value is the instance's
            number.
        derived: Whether it was computed from other annotations.
    """

    structure: str
    reader: str
    state: State = State.CONTOURED
    mask: Callable[[], Array] | None = None
    derived: bool = False

    def __post_init__(self) -> None:
        check_name(self.structure, "structure")
        check_name(self.reader, "reader")
        if (self.mask is not None) != (self.state is State.CONTOURED):
            raise DatasetError(
                f"annotation of {self.structure!r}: a mask must be given exactly if it is contoured."
            )


@dataclass(frozen=True, kw_only=True)
class CaseDraft:
    """One image with its annotations, as an importer read them.

    Args:
        source_identity: What the case's pseudonym is made from: stays the same when the same source is
            imported again, e.g. the Series Instance UID. Private.
        patient_identity: What the patient's pseudonym is made from, e.g. the Patient ID. Private.
        image: In Hounsfield units for CT.
        modality: DICOM's word, e.g. ``"CT"``.
        annotations: At most one per structure and reader.
        importer: Kind of source.
        source_sha256: Role -> digest of the source's bytes; decides whether a second import changes anything.
        scanner: Facts from an allow-list.
        instances: Of structures that have several things.
        findings: What a person should know.
        private: JSON-able record for the private part: identifiers and references that the clinical
            exporters need (see ``docs/reference/dataset-format.md``).
    """

    source_identity: str
    patient_identity: str
    image: Volume
    modality: str
    annotations: tuple[AnnotationDraft, ...]
    importer: str
    source_sha256: Mapping[str, str]
    scanner: Mapping[str, str | float] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    findings: tuple[Finding, ...] = ()
    private: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.source_identity or not self.patient_identity:
            raise DatasetError("case draft: source_identity and patient_identity must not be empty.")
