"""The private part of a dataset: the pseudonym key and the identifiers. Only clinical exporters read it.

``tests/test_architecture.py`` enforces who may import this module.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilium.cases.files import read_json, write_atomically, write_json
from consilium.errors import DatasetError

KEY_BYTES = 32
PSEUDONYM_HEX_DIGITS = 16


class PrivatePart:
    """The folder ``private/`` of a dataset: mode 0700, files 0600.

    Args:
        folder: Made, with a new random key, if it does not exist and ``create`` is true.

    Raises:
        DatasetError: If the folder or its key is missing or damaged.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        key_file = folder / "key"
        if create and not key_file.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(key_file, secrets.token_bytes(KEY_BYTES).hex().encode(), mode=0o600)
        try:
            self._key = bytes.fromhex(key_file.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise DatasetError(
                "private/key: must be there to give pseudonyms or to export to clinical systems; it "
                "cannot be read. Restore it from a backup of this dataset: a new key would give "
                "everybody a new name."
            ) from error
        if len(self._key) != KEY_BYTES:
            raise DatasetError(f"private/key: must hold {KEY_BYTES} bytes; found {len(self._key)}.")

    def case_id(self, source_identity: str) -> str:
        """The pseudonym of an image series: the same for the same key and source, unguessable without it."""
        return f"case-{self._pseudonym('case', source_identity)}"

    def patient_id(self, patient_identity: str) -> str:
        """The pseudonym of a patient."""
        return f"patient-{self._pseudonym('patient', patient_identity)}"

    def _pseudonym(self, kind: str, identity: str) -> str:
        message = f"{kind}\0{identity}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:PSEUDONYM_HEX_DIGITS]

    def write_record(self, case_id: str, record: Mapping[str, Any]) -> None:
        """Keep the identifiers of a case."""
        records = self.folder / "cases"
        records.mkdir(mode=0o700, exist_ok=True)
        write_json(records / f"{case_id}.json", dict(record), mode=0o600)

    def read_record(self, case_id: str) -> dict[str, Any]:
        """The identifiers of a case, as its importer gave them.

        Raises:
            DatasetError: If there are none.
        """
        record: dict[str, Any] = read_json(self.folder / "cases" / f"{case_id}.json")
        return record

    def remove_record(self, case_id: str) -> None:
        """Forget a case; nothing happens if it is not known."""
        (self.folder / "cases" / f"{case_id}.json").unlink(missing_ok=True)

    def is_closed_to_others(self) -> bool:
        """Whether only the owner may enter the folder (always true where the system has no such modes)."""
        return os.name != "posix" or (self.folder.stat().st_mode & 0o077) == 0
