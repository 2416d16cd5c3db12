"""What gives a patient away: patterns of identifiers, and the values a private record must keep to itself."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PATTERNS: dict[str, re.Pattern[str]] = {
    "a DICOM UID": re.compile(r"(?<![\d.])[0-2]\.\d+(?:\.\d+){3,}(?![\d.])"),
    "a date": re.compile(
        r"(?<![0-9A-Za-z.])(?:(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
        r"|(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
        r"|(?:0?[1-9]|[12]\d|3[01])[./](?:0?[1-9]|1[0-2])[./](?:19|20)\d\d)(?![0-9A-Za-z])"
    ),
    "a person's name": re.compile(r"[^\W\d_]{2,}\^[^\W\d_]+"),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "a file path": re.compile(r"(?:[A-Za-z]:\\\\?\w|/(?:home|Users|mnt|media|data|root|tmp|var|srv)/)"),
}
"""What it looks like -> pattern."""

MIN_UID_LENGTH = 16
PRIVATE_KEYS = re.compile(
    r"patient_?(name|id)|uid|accession|birth|physician|operator|institution|study_?(id|description)|date|"
    r"original|path|file",
    re.IGNORECASE,
)
MIN_PRIVATE_LENGTH = 5


def looks_like_identifier(text: str) -> list[str]:
    """The kinds of identifiers that ``text`` seems to hold; empty if it looks harmless."""
    found = []
    for kind, pattern in PATTERNS.items():
        hits = (hit.group() for hit in pattern.finditer(text))
        if any(kind != "a DICOM UID" or len(hit) >= MIN_UID_LENGTH for hit in hits):
            found.append(kind)
    return found


def private_values(record: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """``(key, value)`` of every text in a private record that identifies somebody.

    Only keys that say so are taken (`PRIVATE_KEYS`), and values of at least five characters that are no plain
    word of the record's own vocabulary: a structure's name may stand outside as well.
    """
    if isinstance(record, Mapping):
        for name, value in record.items():
            yield from private_values(value, str(name))
    elif isinstance(record, str):
        if PRIVATE_KEYS.search(key) and len(record) >= MIN_PRIVATE_LENGTH:
            yield key, record
    elif isinstance(record, Sequence):
        for value in record:
            yield from private_values(value, key)
