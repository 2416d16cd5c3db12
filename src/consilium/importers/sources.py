"""What a folder holds that can become cases: DICOM series, NIfTI folders, nnU-Net raw folders."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consilium.cases.draft import CaseDraft
from consilium.errors import RefusedInput
from consilium.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a person decides about an import.

    Args:
        allow_missing_slices: Fill gaps between DICOM slices by interpolation, with a finding.
        modalities: DICOM modalities to take.
    """

    allow_missing_slices: bool = False
    modalities: tuple[str, ...] = ("CT",)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that can become a case.

    Args:
        name: How messages call it; identifies nobody.
        location: Where it lies. Private.
        identity: What the case's pseudonym is made from. Private.
        digests: Reads the source's bytes and gives role -> SHA-256.
        read: Makes the case.
    """

    name: str
    location: Path
    identity: str
    digests: Callable[[], Mapping[str, str]]
    read: Callable[[Progress], CaseDraft]


@dataclass(frozen=True, kw_only=True)
class FoundSources:
    """What `find_sources` found.

    Args:
        sources: To import.
        refused: What cannot be; nothing else is lost by it.
        left_out: Reason -> number of files that are none of the importer's business.
    """

    sources: tuple[Source, ...] = ()
    refused: tuple[RefusedInput, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def find_sources(
    source: Path, options: ImportOptions | None = None, progress: Progress = no_progress
) -> FoundSources:
    """Look through a file or folder and tell what can become a case, from headers alone.

    A folder with nnU-Net's ``dataset.json`` is taken as such. Else every DICOM series with what refers to it,
    and every folder of NIfTI files, is a case.

    Raises:
        RefusedInput: If ``source`` does not exist.
    """
    # The readers import this module's records.
    from consilium.importers.dicom_study import find_dicom
    from consilium.importers.nifti import find_nifti
    from consilium.importers.nnunet import find_nnunet, is_nnunet

    options = options or ImportOptions()
    if not source.exists():
        raise RefusedInput("source", "must exist; it does not.", "Check the path.")
    if source.is_dir() and is_nnunet(source):
        return find_nnunet(source)
    paths = [source] if source.is_file() else sorted(p for p in files_below(source) if p.is_file())
    niftis = [p for p in paths if p.name.endswith((".nii", ".nii.gz"))]
    others = [p for p in paths if not p.name.endswith((".nii", ".nii.gz"))]
    return _joined(find_dicom(others, options, progress), find_nifti(niftis, source))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file, in the order of names, one folder's names at a time; links to folders are followed once."""
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        status = Path(where).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            yield Path(where, name)


def _joined(*found: FoundSources) -> FoundSources:
    left_out: dict[str, int] = {}
    for part in found:
        left_out.update(part.left_out)
    return FoundSources(
        sources=tuple(s for part in found for s in part.sources),
        refused=tuple(r for part in found for r in part.refused),
        left_out=left_out,
    )
