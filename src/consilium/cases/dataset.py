"""A dataset folder: open it, add cases so that an interruption loses nothing, read images and masks."""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

import consilium
from consilium.cases.case import (
    Annotation,
    Case,
    Finding,
    ImageRecord,
    Provenance,
    State,
    case_from_json,
    case_to_json,
)
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.files import read_json, sync_folder, write_json
from consilium.cases.nifti import content_sha256, read_nifti, write_nifti
from consilium.cases.private import PrivatePart
from consilium.errors import DataError, DatasetError
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, Mask

DATASET_FORMAT = "consilium-dataset"
DATASET_VERSION = 1
MANIFEST = "dataset.json"
MANIFEST_GRID_TOLERANCE_MM = 0.01


class Added(StrEnum):
    """What `Dataset.add` did."""

    NEW = "new"
    UNCHANGED = "unchanged"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Dataset:
    """A folder in the dataset format, version 1 (``docs/reference/dataset-format.md``).

    Use `open_dataset` or `create_dataset`; both check the manifest.
    """

    folder: Path

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Every case of the manifest, sorted."""
        return tuple(sorted(self._manifest()["cases"]))

    @property
    def structures(self) -> tuple[str, ...]:
        """Every structure that some case says something about, sorted."""
        return tuple(self._manifest()["structures"])

    def case(self, case_id: str) -> Case:
        """The record of one case.

        Raises:
            DatasetError: If the manifest does not list it or its record is damaged.
        """
        digest = self._manifest()["cases"].get(case_id)
        if digest is None:
            raise DatasetError(f"{case_id}: must be listed in {MANIFEST}; it is not.")
        path = self.case_folder(case_id) / "case.json"
        case = case_from_json(read_json(path))
        if _file_sha256(path) != digest:
            raise DatasetError(
                f"{case_id}: case.json must have the digest that {MANIFEST} gives; it was changed outside "
                "consilium or damaged. Import the case again with --replace, or restore it."
            )
        return case

    def cases(self) -> Iterator[Case]:
        """Every case, in the order of `case_ids`."""
        for case_id in self.case_ids:
            yield self.case(case_id)

    def case_folder(self, case_id: str) -> Path:
        """Where a case's files lie."""
        return self.folder / "cases" / case_id

    @property
    def cache_folder(self) -> Path:
        """Where derived files lie that may be deleted at any time."""
        return self.folder / "cache"

    def private_part(self) -> PrivatePart:
        """The pseudonym key and the identifiers; for importers and clinical exporters only."""
        return PrivatePart(self.folder / "private")

    def load_image(self, case: Case) -> Volume:
        """The image, with the exact grid of the record.

        Raises:
            DatasetError: If the file's grid is not the record's.
        """
        return self._load(case, case.image.file)

    def load_mask(self, case: Case, structure: str, reader: str | None = None) -> Mask:
        """Where a structure is: bool (Z, Y, X) on the image's grid; all False if it is absent.

        Args:
            case: Of this dataset.
            structure: Contoured or absent in this case.
            reader: Whose; by default `Case.annotation`'s choice.

        Raises:
            DatasetError: If the structure is unknown here: then there is no truth to return.
        """
        return np.asarray(self.load_instances(case, structure, reader) != 0)

    def load_instances(self, case: Case, structure: str, reader: str | None = None) -> Array:
        """Like `load_mask`, with the instance's number in each voxel (1 where there are none)."""
        annotation = case.annotation(structure, reader)
        if annotation is None or annotation.state is State.UNKNOWN:
            raise DatasetError(
                f"{case.case_id}: {structure!r} must be contoured or absent to have a mask; it is unknown."
            )
        if annotation.file is None:
            return np.zeros(case.image.grid.shape_zyx, dtype=np.uint8)
        return self._load(case, annotation.file).array

    def add(self, draft: CaseDraft, *, replace: bool = False) -> tuple[Case, Added]:
        """Write a case: its private record, then its folder in one rename, then the manifest.

        Interrupted anywhere, the dataset stays as it was, or holds the whole case. Adding the same source
        again changes nothing.

        Raises:
            DatasetError: If the case is there from a source of other content and ``replace`` is false.
        """
        private = self.private_part()
        case_id = private.case_id(draft.source_identity)
        known = case_id in self._manifest()["cases"]
        if known and not replace:
            case = self.case(case_id)
            if dict(case.provenance.source_sha256) != dict(draft.source_sha256):
                raise DatasetError(
                    f"{case_id}: is in the dataset from a source of other content. "
                    "Import with --replace to take the new one."
                )
            return case, Added.UNCHANGED
        incoming = self.folder / "cases" / f".incoming-{case_id}"
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            incoming.mkdir(parents=True)
            case = _write_case(incoming, draft, case_id, private.patient_id(draft.patient_identity))
            private.write_record(case_id, draft.private)
            self._take_in(incoming, case_id)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self._list(case)
        return case, Added.REPLACED if known else Added.NEW

    def update(self, case: Case) -> None:
        """Replace the record of a case that is there; its files must be in its folder already."""
        write_json(self.case_folder(case.case_id) / "case.json", case_to_json(case))
        self._list(case)

    def remove(self, case_id: str) -> None:
        """Take a case out: from the manifest first, then its folder and its private record."""
        with self._locked():
            manifest = self._manifest()
            manifest["cases"].pop(case_id, None)
            self._write_manifest(manifest)
        shutil.rmtree(self.case_folder(case_id), ignore_errors=True)
        self.private_part().remove_record(case_id)

    def _take_in(self, incoming: Path, case_id: str) -> None:
        target = self.case_folder(case_id)
        shutil.rmtree(target, ignore_errors=True)
        incoming.rename(target)
        sync_folder(target.parent)

    def _list(self, case: Case) -> None:
        with self._locked():
            manifest = self._manifest()
            record = self.case_folder(case.case_id) / "case.json"
            manifest["cases"][case.case_id] = _file_sha256(record)
            names = {annotation.structure for annotation in case.annotations}
            manifest["structures"] = sorted(names | set(manifest["structures"]))
            self._write_manifest(manifest)

    def _load(self, case: Case, file: str) -> Volume:
        volume = read_nifti(_inside(self.case_folder(case.case_id), file))
        if not volume.grid.is_same_as(case.image.grid, MANIFEST_GRID_TOLERANCE_MM):
            raise DatasetError(
                f"{case.case_id}/{file}: must lie on the grid of case.json within "
                f"{MANIFEST_GRID_TOLERANCE_MM} mm; it does not. Import the case again."
            )
        return Volume(volume.array, case.image.grid)

    def _manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        return manifest

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.folder / MANIFEST, manifest)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, across processes."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def create_dataset(folder: Path) -> Dataset:
    """Make an empty dataset, or open the one that is there.

    Raises:
        DatasetError: If the folder holds something else.
    """
    if (folder / MANIFEST).exists():
        return open_dataset(folder)
    if folder.exists() and any(entry.name not in {"private", "cases", ".lock"} for entry in folder.iterdir()):
        raise DatasetError(
            f"{folder.name}: must be empty or a dataset; it holds other files. Name a new folder."
        )
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    PrivatePart(folder / "private", create=True)
    manifest = {
        "format": DATASET_FORMAT,
        "version": DATASET_VERSION,
        "created_by": f"consilium {consilium.__version__}",
        "structures": [],
        "cases": {},
    }
    write_json(folder / MANIFEST, manifest)
    return Dataset(folder)


def open_dataset(folder: Path) -> Dataset:
    """Open a dataset.

    Raises:
        DatasetError: If there is none, or one of another version.
    """
    if not (folder / MANIFEST).is_file():
        raise DatasetError(
            f"{folder.name}: must be a dataset folder with {MANIFEST}; there is none. "
            "Make one with: consilium import SOURCE DATASET"
        )
    manifest = read_json(folder / MANIFEST)
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    if found != (DATASET_FORMAT, DATASET_VERSION):
        raise DatasetError(
            f"{folder.name}/{MANIFEST}: must be of format {DATASET_FORMAT!r} version {DATASET_VERSION}; "
            f"found {found}. Bring it up to date with: consilium standardise DATASET"
        )
    return Dataset(folder)
