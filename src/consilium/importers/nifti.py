"""NIfTI folders as cases: an image with one mask per structure, or with a labelmap that names its codes."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from defusedxml import ElementTree

from consilium.cases.case import Finding, State
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import read_nifti
from consilium.errors import DataError, DatasetError, RefusedInput
from consilium.geometry.volume import Grid, Volume
from consilium.importers.dicom_file import file_sha256
from consilium.importers.sources import FoundSources, Source
from consilium.types import Array, Progress

READER = "clinical"
MASK_FOLDERS = ("segmentations", "masks", "labels", "structures")
IMAGE_WORDS = frozenset({"ct", "image", "img", "volume", "imaging"})
LABELMAP_WORDS = frozenset({"seg", "segmentation", "label", "labels", "labelmap"})
GRID_TOLERANCE_MM = 0.05
"""NIfTI keeps affines in single precision."""
INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class NiftiCase:
    """The files of one case: ``masks`` by structure, and labelmaps."""

    identity: str
    image: Path
    masks: Mapping[str, Path]
    labelmaps: tuple[Path, ...] = ()


def find_nifti(paths: Sequence[Path], root: Path) -> FoundSources:
    """Every image among NIfTI files, with its masks.

    An image is called ``ct``, ``image``, ``img``, ``volume`` or ``imaging`` (perhaps with more words). Masks
    lie in a folder ``segmentations``, ``masks``, ``labels`` or ``structures`` beside it, one per structure; a
    labelmap beside it has ``seg`` or ``label`` in its name. A mask file that is not there says nothing: the
    structure is unknown.
    """
    refused: list[RefusedInput] = []
    found: list[tuple[Path, NiftiCase]] = []
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        if not path.name.startswith("."):  # as macOS writes beside every file on a foreign disk
            by_folder.setdefault(path.parent, []).append(path)
    for folder, files in sorted(by_folder.items()):
        if folder.name.lower() in MASK_FOLDERS and folder.parent in by_folder:
            continue
        images = [p for p in files if _words(p) & IMAGE_WORDS and not _words(p) & LABELMAP_WORDS]
        if len(files) == 1 and not _words(files[0]) & LABELMAP_WORDS:
            images = files
        if len(images) != 1:
            refused.append(
                RefusedInput(
                    f"NIfTI folder {len(found) + len(refused) + 1}",
                    f"must hold one image called ct or image; found {len(images)} among {len(files)} files.",
                    "Put each case into a folder of its own: ct.nii.gz and segmentations/<structure>.nii.gz.",
                )
            )
            continue
        beside = (f for f in sorted(by_folder) if f.parent == folder and f.name.lower() in MASK_FOLDERS)
        masks = {stem(p): p for f in beside for p in by_folder[f]}
        labelmaps = tuple(p for p in files if _words(p) & LABELMAP_WORDS and p not in images)
        found.append((folder, NiftiCase(folder.resolve().name, images[0], masks, labelmaps)))
    repeated = {name for name, n in Counter(case.identity for _, case in found).items() if n > 1}
    sources = []
    for number, (folder, case) in enumerate(found, start=1):
        if case.identity in repeated and root.is_dir():
            case = replace(case, identity=folder.relative_to(root).as_posix())
        sources.append(_source(case, f"NIfTI case {number}"))
    return FoundSources(sources=tuple(sources), refused=tuple(refused))


def _source(case: NiftiCase, name: str) -> Source:
    def read(_progress: Progress) -> CaseDraft:
        return read_nifti_case(case, name)

    return Source(
        name=name,
        location=case.image.parent,
        identity=f"nifti {case.identity}",
        digests=lambda: _digests(case),
        read=read,
    )


def read_nifti_case(case: NiftiCase, where: str) -> CaseDraft:
    """Read an image and what was contoured on it.

    An empty mask file means that somebody looked and the structure is *absent*; so does a named code that a
    labelmap does not hold. The patient is the folder.

    Raises:
        RefusedInput: If a file cannot be read, the image holds NaN, or a mask lies on another grid.
    """
    image = read_image(case.image, where)
    annotations: list[AnnotationDraft] = []
    findings: list[Finding] = []
    for structure, path in sorted(case.masks.items()):
        annotations.append(_mask_annotation(structure, path, image.grid, where))
    for path in case.labelmaps:
        labels = labelmap_names(path)
        on_grid = read_nifti_grid(path, where).is_same_as(image.grid, GRID_TOLERANCE_MM)
        if not labels or not on_grid:
            findings.append(_labelmap_left_out(named=bool(labels)))
            continue
        annotations += annotations_from_labelmap(path, labels, image.grid, where)
    return CaseDraft(
        source_identity=f"nifti {case.identity}",
        patient_identity=f"nifti {case.identity}",
        image=image,
        modality="CT",
        annotations=tuple(annotations),
        importer="nifti",
        source_sha256=_digests(case),
        findings=tuple(findings),
        private={"kind": "nifti", "folder": case.identity},
    )


def _labelmap_left_out(*, named: bool) -> Finding:
    if named:
        return Finding(
            code="labelmap-of-another-grid",
            message="a labelmap beside the image lies on another grid; it was left out.",
            remedy="Resample it to the image, or put it beside its own image.",
        )
    return Finding(
        code="labelmap-without-names",
        message="a labelmap beside the image does not say what its codes mean; it was left out.",
        remedy='Write labels.json beside it, {"1": "Bladder", …}, and import with --replace.',
    )


def annotations_from_labelmap(
    path: Path, codes: Mapping[str, Sequence[int]], grid: Grid, where: str
) -> list[AnnotationDraft]:
    """One annotation per named structure of a labelmap; absent where none of its codes is there."""
    present = set(np.unique(read_labels(path, grid, where)).tolist())
    annotations = []
    for structure, wanted in sorted(codes.items()):
        if present.isdisjoint(wanted):
            annotations.append(_annotation(structure, None, where))
            continue

        def mask(wanted: Sequence[int] = tuple(wanted)) -> Array:
            return np.isin(read_labels(path, grid, where), wanted)

        annotations.append(_annotation(structure, mask, where))
    return annotations


def read_image(path: Path, where: str) -> Volume:
    """An image; whole numbers in floating point become int16 where they fit.

    Raises:
        RefusedInput: If it cannot be read or holds NaN or infinity.
    """
    volume = _read(path, where)
    array = volume.array
    if array.dtype == np.int16:
        return volume
    if array.dtype.kind not in "fiu":
        raise RefusedInput(where, f"an image must hold numbers; found {array.dtype}.", "Convert it again.")
    bad = int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
    if bad:
        raise RefusedInput(
            where,
            f"every voxel of the image must be a number; {bad} of {array.size} are NaN or infinite.",
            "Convert it again from its source; outside the scanned field write -1024.",
        )
    fits = array.min() >= INT16.min and array.max() <= INT16.max
    if fits and (array.dtype.kind in "iu" or np.array_equal(array, np.rint(array))):
        return Volume(array.astype(np.int16), volume.grid)
    return Volume(array.astype(np.float32), volume.grid)


def read_labels(path: Path, grid: Grid, where: str) -> Array:
    """Codes (Z, Y, X) of a mask or labelmap, which must lie on the image's grid and hold whole numbers.

    Raises:
        RefusedInput: If it does not.
    """
    volume = _read(path, where)
    if not volume.grid.is_same_as(grid, GRID_TOLERANCE_MM):
        raise RefusedInput(
            where,
            f"a mask must lie on the image's grid within {GRID_TOLERANCE_MM} mm; the image has "
            f"{_described(grid)}, the mask {_described(volume.grid)}.",
            "Resample the mask to the image, or convert both again from their source.",
        )
    array = volume.array
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise RefusedInput(
            where,
            f"a mask must hold whole numbers; found {np.nanmin(array):g} to {np.nanmax(array):g}.",
            "Threshold the probabilities first.",
        )
    if array.dtype.kind not in "iufb" or array.min() < 0:
        raise RefusedInput(where, "a mask must hold numbers from 0; it does not.", "Convert it again.")
    return array


def read_nifti_grid(path: Path, where: str) -> Grid:
    """The grid of a NIfTI file."""
    return _read(path, where).grid


def labelmap_names(path: Path) -> dict[str, tuple[int, ...]]:
    """Structure -> its codes; empty if nothing names them.

    From ``<labelmap>.json`` or ``labels.json`` beside it, or from the file's own label table, as
    TotalSegmentator writes it.

    Raises:
        RefusedInput: If there is a JSON that does not map codes to names.
    """
    for candidate in _files_of_names(path):
        try:
            record = json.loads(candidate.read_text(encoding="utf-8"))
            return _codes_by_name((str(name), int(code)) for code, name in record.items())
        except (ValueError, AttributeError, RecursionError) as error:
            raise RefusedInput(
                "labels.json", 'must map codes to names: {"1": "Bladder", …}; it does not.', "Mend it."
            ) from error
    return _label_table(path)


def _files_of_names(path: Path) -> list[Path]:
    """The JSON files beside a labelmap that name its codes; the first counts."""
    candidates = (path.with_name(f"{stem(path)}.json"), path.with_name("labels.json"))
    return [candidate for candidate in candidates if candidate.is_file()]


def _codes_by_name(named: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Without the background; several codes may be of one structure."""
    codes: dict[str, tuple[int, ...]] = {}
    for name, code in named:
        if code > 0:
            codes[name] = (*codes.get(name, ()), code)
    return codes


def _label_table(path: Path) -> dict[str, tuple[int, ...]]:
    """The table of the Caret extension of a NIfTI header."""
    try:
        contents = [bytes(e.get_content()) for e in nibabel.load(path).header.extensions]
        tables = [content.strip(b"\0 \n") for content in contents if b"<LabelTable>" in content]
        labels = ElementTree.fromstring(tables[0]).iter("Label") if tables else ()
        return _codes_by_name((str(e.text).strip(), int(e.get("Key", "0"))) for e in labels)
    except (ValueError, TypeError, AttributeError, OSError, ElementTree.ParseError):
        return {}


def stem(path: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _words(path: Path) -> set[str]:
    return set(stem(path).lower().replace("-", "_").split("_"))


def _read(path: Path, where: str) -> Volume:
    try:
        return read_nifti(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path.name}: ")
        raise RefusedInput(where, reason, "") from error


def _mask_annotation(structure: str, path: Path, grid: Grid, where: str) -> AnnotationDraft:
    if not read_labels(path, grid, where).any():
        return _annotation(structure, None, where)
    return _annotation(structure, lambda: read_labels(path, grid, where) != 0, where)


def _annotation(structure: str, mask: Callable[[], Array] | None, where: str) -> AnnotationDraft:
    state = State.ABSENT if mask is None else State.CONTOURED
    try:
        return AnnotationDraft(structure=structure, reader=READER, state=state, mask=mask)
    except DatasetError as error:
        raise RefusedInput(where, str(error), "Rename the mask's file or code.") from error


def _described(grid: Grid) -> str:
    spacing = " × ".join(f"{s:.3f}" for s in grid.spacing_zyx_mm)
    origin = ", ".join(f"{o:.2f}" for o in grid.affine.origin_lps_mm)
    return f"{grid.shape_zyx} voxels of {spacing} mm from ({origin}) mm"


def _digests(case: NiftiCase) -> dict[str, str]:
    digests = {"image": file_sha256(case.image)}
    others = [*(case.masks[name] for name in sorted(case.masks)), *case.labelmaps]
    if others:
        joined = "".join(f"{stem(path)}{file_sha256(path)}" for path in others)
        digests["masks"] = hashlib.sha256(joined.encode()).hexdigest()
    named = "".join(file_sha256(names) for path in case.labelmaps for names in _files_of_names(path)[:1])
    if named:
        digests["labels"] = hashlib.sha256(named.encode()).hexdigest()
    return digests
