"""Whether every string of a DICOM object keeps the lengths and characters of its value representation."""

from typing import Any

from pydicom.dataset import Dataset

from consilium.errors import DataError

MAX_CHARACTERS = {
    "AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "LT": 10240, "PN": 64,
    "SH": 16, "ST": 1024, "TM": 14, "UI": 64,
}  # fmt: skip
"""DICOM PS3.5 table 6.2-1; PN: per group of components."""
ONE_LINE = frozenset({"AE", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI"})


def check_strings(dataset: Dataset) -> None:
    """Refuse an object in which a string is too long or holds a control character.

    Elements that are still raw bytes (contour data, which is formatted within the limits) are passed over.

    Raises:
        DataError: Naming the attribute, the limit and the length, never the value.
    """
    for tag in list(dataset.keys()):
        element: Any = dataset.get_item(tag)
        if element.is_raw:
            continue
        if element.VR == "SQ":
            for item in element.value:
                check_strings(item)
        elif element.VR in MAX_CHARACTERS:
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                _check(
                    element, "" if value is None else getattr(value, "original_string", None) or str(value)
                )


def _check(element: Any, text: str) -> None:
    groups = text.split("=") if element.VR == "PN" else [text]
    longest = max(map(len, groups))
    limit = MAX_CHARACTERS[element.VR]
    if longest > limit:
        raise DataError(
            f"{element.keyword}: must have at most {limit} characters ({element.VR}, DICOM PS3.5 6.2); has "
            f"{longest}. Shorten it."
        )
    if element.VR in ONE_LINE and not all(c.isprintable() and c != "\\" for c in text):
        raise DataError(
            f"{element.keyword}: must have printable characters and no backslash ({element.VR}, DICOM PS3.5 "
            "6.2); it has others. Rename it."
        )
