"""The series that an exported DICOM object refers to, from the private record of a case."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consilium.errors import DataError
from consilium.types import Triple

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_LENGTH = 64
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")


@dataclass(frozen=True, kw_only=True)
class SeriesReference:
    """What of the original series goes into objects that are made for it.

    Args:
        patient: The attributes `PATIENT`; "" where the source has none.
        study: The attributes `STUDY`.
        series_instance_uid: Of the series.
        frame_of_reference_uid: "" where the source has none.
        position_reference_indicator: "" where the source has none.
        sop_class_uid: Of its instances.
        slices: SOP Instance UID and position of each slice, in array order.

    Raises:
        DataError: If a UID is none.
    """

    patient: Mapping[str, str]
    study: Mapping[str, str]
    series_instance_uid: str
    frame_of_reference_uid: str = ""
    position_reference_indicator: str = ""
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.2"
    slices: tuple[tuple[str, Triple], ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        needed = {
            "StudyInstanceUID": self.study.get("StudyInstanceUID", ""),
            "SeriesInstanceUID": self.series_instance_uid,
            "SOPClassUID": self.sop_class_uid,
            **{f"SOPInstanceUID of slice {k}": uid for k, (uid, _) in enumerate(self.slices)},
        }
        if self.frame_of_reference_uid:
            needed["FrameOfReferenceUID"] = self.frame_of_reference_uid
        for what, uid in needed.items():
            if len(uid) > MAX_UID_LENGTH or not UID.fullmatch(uid):
                raise DataError(
                    f"private record: {what} must be a UID of at most {MAX_UID_LENGTH} digits and full "
                    "stops; it is not. Import the series again."
                )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SeriesReference":
        """From the private record of a case that came from DICOM.

        Raises:
            DataError: If the case did not come from DICOM, or the record is incomplete.
        """
        if record.get("kind") != "dicom":
            raise DataError(
                f"private record: must be of a case that came from DICOM; it is {record.get('kind')!r}. "
                "Export it as NIfTI, or give the DICOM series."
            )
        try:
            series = record["series"]
            return cls(
                patient={key: str(record["patient"].get(key) or "") for key in PATIENT},
                study={key: str(record["study"].get(key) or "") for key in STUDY},
                series_instance_uid=str(series["SeriesInstanceUID"]),
                frame_of_reference_uid=str(series.get("FrameOfReferenceUID") or ""),
                position_reference_indicator=str(series.get("PositionReferenceIndicator") or ""),
                sop_class_uid=str(series["SOPClassUID"]),
                slices=tuple(
                    (str(s["sop_instance_uid"]), _triple(s["position_lps_mm"])) for s in record["slices"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"private record: a field is missing or of a wrong kind ({type(error).__name__}). "
                "Import the series again."
            ) from error


def _triple(position: Any) -> Triple:
    x, y, z = (float(v) for v in position)
    return x, y, z
