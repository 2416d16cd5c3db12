"""A dataset folder: open it, add cases so that an interruption loses nothing, read images and masks."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import consilium
from consilium.cases.case import Annotation, Case, State, case_from_json, case_to_json
from consilium.cases.commit import (
    MANIFEST,
    begin_exchange,
    dataset_lock,
    incoming_folder,
    keep_record,
    settle,
    sweep,
    undo_new,
)
from consilium.cases.draft import CaseDraft
from consilium.cases.files import read_json, write_json
from consilium.cases.folder import (
    CASE_RECORD,
    bytes_sha256,
    carry_corrections,
    file_name_of,
    path_inside,
    write_case,
)
from consilium.cases.names import load_names, rename_draft
from consilium.cases.nifti import read_nifti
from consilium.cases.private import PrivatePart
from consilium.errors import DatasetError
from consilium.geometry.volume import Volume
from consilium.types import Array, Mask

__all__ = ["MANIFEST", "Added", "Dataset", "create_dataset", "file_name_of", "open_dataset"]

DATASET_FORMAT = "consilium-dataset"
DATASET_VERSION = 1
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
        try:
            return self._read_case(case_id, self._manifest()["cases"].get(case_id))
        except DatasetError:
            if not self._settled(case_id):
                raise
        return self._read_case(case_id, self._manifest()["cases"].get(case_id))

    def cases(self) -> Iterator[Case]:
        """Every case that the manifest lists at the start, in the order of `case_ids`."""
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
        """Write a case: its folder aside, then in one rename, its private record, then the manifest.

        Interrupted anywhere, by a kill or a full disk, the dataset stays as it was or holds the whole case.
        Adding the same source again changes nothing. Several processes may add at once. Structures take the
        names that the dataset's ``names.toml`` accepts. A case that replaces another keeps its corrections.

        Raises:
            DatasetError: If the case is there from a source of other content and ``replace`` is false, or has
                corrections that were drawn on another image.
            OSError: If the system cannot write, e.g. because the disk is full.
        """
        private = self.private_part()
        case_id = private.case_id(draft.source_identity)
        draft = rename_draft(draft, load_names(self.folder))
        if not replace and case_id in self._manifest()["cases"]:
            return self._same_source(self.case(case_id), draft), Added.UNCHANGED
        with incoming_folder(self.folder, case_id) as incoming:
            case = write_case(incoming, draft, case_id, private.patient_id(draft.patient_identity))
            with dataset_lock(self.folder):
                manifest = self._fresh_manifest()
                sweep(self.folder, manifest["cases"])
                digest = manifest["cases"].get(case_id)
                if digest is not None and not replace:
                    return self._same_source(self._read_case(case_id, digest), draft), Added.UNCHANGED
                before = self._undamaged(case_id, digest)
                if before is not None:
                    case = carry_corrections(self.case_folder(case_id), before, incoming, case)
                try:
                    begin_exchange(self.folder, case_id, incoming)
                    private.write_record(case_id, draft.private)
                    self._list(manifest, case, before)
                finally:
                    self._end_exchange(case_id)
        return case, Added.NEW if digest is None else Added.REPLACED

    def update(self, case: Case) -> None:
        """Replace the record of a case that is there; its files must be in its folder already."""
        self.change(case.case_id, lambda before: case)

    def add_annotation(self, case_id: str, annotation: Annotation) -> Case:
        """Put an annotation into the record of a case as it is now, in place of one of the same reader.

        Several processes may add at once: each adds to what the others have written.
        """

        def changed(before: Case) -> Case:
            key = (annotation.structure, annotation.reader)
            kept = [a for a in before.annotations if (a.structure, a.reader) != key]
            return replace(before, annotations=(*kept, annotation))

        return self.change(case_id, changed)

    def change(self, case_id: str, change: Callable[[Case], Case]) -> Case:
        """Put what ``change`` makes of a case's record as it is now in its place, with no writer in between.

        Its files must be in its folder already.
        """
        with dataset_lock(self.folder):
            manifest = self._fresh_manifest()
            settle(self.folder, case_id, manifest["cases"].get(case_id))
            before = self._read_case(case_id, manifest["cases"].get(case_id))
            case = change(before)
            keep_record(self.folder, case_id)
            try:
                write_json(self.case_folder(case_id) / CASE_RECORD, case_to_json(case))
                self._list(manifest, case, before)
            finally:
                settle(self.folder, case_id, self._fresh_manifest()["cases"].get(case_id))
        return case

    def remove(self, case_id: str) -> None:
        """Take a case out: from the manifest first, then its folder and its private record."""
        with dataset_lock(self.folder):
            manifest = self._fresh_manifest()
            if manifest["cases"].pop(case_id, None) is not None:
                manifest["structures"] = self._structures_of(manifest["cases"])
                write_json(self.folder / MANIFEST, manifest)
            shutil.rmtree(self.case_folder(case_id), ignore_errors=True)
            self.private_part().remove_record(case_id)

    def _same_source(self, case: Case, draft: CaseDraft) -> Case:
        if dict(case.provenance.source_sha256) != dict(draft.source_sha256):
            raise DatasetError(
                f"{case.case_id}: is in the dataset from a source of other content. "
                "Import with --replace to take the new one."
            )
        return case

    def _read_case(self, case_id: str, digest: str | None) -> Case:
        if digest is None:
            raise DatasetError(f"{case_id}: must be listed in {MANIFEST}; it is not.")
        try:
            content = (self.case_folder(case_id) / CASE_RECORD).read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{case_id}: {CASE_RECORD} must be readable; {type(error).__name__} on reading it. "
                "Restore it, or import the case again with --replace."
            ) from error
        if bytes_sha256(content) != digest:
            raise DatasetError(
                f"{case_id}: case.json must have the digest that {MANIFEST} gives; it was changed outside "
                "consilium or damaged. Import the case again with --replace, or restore it."
            )
        return case_from_json(json.loads(content))

    def _end_exchange(self, case_id: str) -> None:
        """Clear up as the manifest says, whether the exchange went well or not; the caller holds the lock."""
        listed: str | None = self._fresh_manifest()["cases"].get(case_id)
        if listed is None:
            undo_new(self.folder, case_id)
        else:
            settle(self.folder, case_id, listed)

    def _undamaged(self, case_id: str, digest: str | None) -> Case | None:
        """The case that is to be replaced; None where there is none, or only a damaged one."""
        try:
            return self._read_case(case_id, digest)
        except DatasetError:
            return None

    def _settled(self, case_id: str) -> bool:
        """End what a killed writer left of this case, waiting for a living one; False where one cannot."""
        try:
            with dataset_lock(self.folder):
                settle(self.folder, case_id, self._fresh_manifest()["cases"].get(case_id))
        except OSError:
            return False
        return True

    def _list(self, manifest: dict[str, Any], case: Case, before: Case | None) -> None:
        """Write the manifest with this case's record; the caller holds the lock."""
        record = self.case_folder(case.case_id) / CASE_RECORD
        manifest["cases"][case.case_id] = bytes_sha256(record.read_bytes())
        names = {annotation.structure for annotation in case.annotations}
        gone = {annotation.structure for annotation in before.annotations} - names if before else set()
        if gone:
            manifest["structures"] = self._structures_of(manifest["cases"])
        else:
            manifest["structures"] = sorted(names | set(manifest["structures"]))
        write_json(self.folder / MANIFEST, manifest)

    def _structures_of(self, listed: Mapping[str, str]) -> list[str]:
        cases = (self._read_case(case_id, digest) for case_id, digest in listed.items())
        return sorted({annotation.structure for case in cases for annotation in case.annotations})

    def _load(self, case: Case, file: str) -> Volume:
        volume = read_nifti(path_inside(self.case_folder(case.case_id), file))
        if not volume.grid.is_same_as(case.image.grid, MANIFEST_GRID_TOLERANCE_MM):
            raise DatasetError(
                f"{case.case_id}/{file}: must lie on the grid of case.json within "
                f"{MANIFEST_GRID_TOLERANCE_MM} mm; it does not. Import the case again."
            )
        return Volume(volume.array, case.image.grid)

    def _manifest(self) -> Mapping[str, Any]:
        """The manifest to read from: parsed again only when the file was replaced."""
        path = self.folder / MANIFEST
        try:
            status = path.stat()
        except OSError:
            return self._fresh_manifest()
        return _parsed_manifest(path, (status.st_ino, status.st_mtime_ns, status.st_size))

    def _fresh_manifest(self) -> dict[str, Any]:
        """The manifest to change; the caller holds the lock."""
        manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        return manifest


def create_dataset(folder: Path) -> Dataset:
    """Make an empty dataset, or open the one that is there.

    Raises:
        DatasetError: If the folder holds something else.
    """
    if (folder / MANIFEST).exists():
        return open_dataset(folder)
    # Another process may be making the same dataset: its manifest may appear while the folder is listed.
    ours = {"private", "cases", ".lock", MANIFEST}
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    if any(name not in ours and not name.startswith(f".{MANIFEST}.") for name in names):
        raise DatasetError(
            f"{folder.name}: must be empty or a dataset; it holds other files. Name a new folder."
        )
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    with dataset_lock(folder):
        if not (folder / MANIFEST).exists():
            PrivatePart(folder / "private", create=True)
            manifest = {
                "format": DATASET_FORMAT,
                "version": DATASET_VERSION,
                "created_by": f"consilium {consilium.__version__}",
                "structures": [],
                "cases": {},
            }
            write_json(folder / MANIFEST, manifest)
    return open_dataset(folder)


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


@lru_cache(maxsize=8)
def _parsed_manifest(path: Path, stamp: tuple[int, int, int]) -> Mapping[str, Any]:
    """The manifest of this stamp; the stamp is the cache's key, for every write makes a new file."""
    manifest: Mapping[str, Any] = read_json(path)
    return manifest
