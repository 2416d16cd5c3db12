"""What a model contoured, as cases to look at: in a dataset, or beside the output of contour."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.annotate import write_annotation
from consilium.cases.case import MODEL_READER
from consilium.cases.dataset import Dataset, create_dataset, file_name_of
from consilium.cases.files import read_json, write_json
from consilium.cases.nifti import read_nifti
from consilium.cli.console import console, print_table, progress_bar
from consilium.errors import DataError
from consilium.geometry.volume import Grid
from consilium.importers.dicom_seg import annotations_from_seg
from consilium.importers.dicom_series import SeriesHeader
from consilium.importers.rtstruct import annotations_from_rtstruct, read_rtstruct
from consilium.importers.sources import ImportOptions, Source, find_sources
from consilium.inference.contour import contour_volume
from consilium.inference.model import Model
from consilium.review.places import CONTOURS, INNER_DATASET
from consilium.types import Mask, Progress

DICOM_NAMES = {"rtstruct": "contours.dcm", "seg": "segmentation.dcm"}
SOURCE_NOTE = Path("private") / "source.json"
"""Where the image lies; its path may name a patient, so that only the owner may read it."""


def contour_dataset(models: Sequence[Model], dataset: Dataset) -> None:
    """Contour every case; a structure is in the dataset as soon as it is drawn: a stop loses one."""
    reader = model_reader([model.digest for model in models])
    rows = []
    with progress_bar() as progress:
        ids = dataset.case_ids
        for done, case_id in enumerate(ids):
            progress("contouring cases", done, len(ids))
            case = dataset.case(case_id)
            if all(case.annotation(name, reader) is not None for name in models[0].structures):
                continue
            for name, mask, found in contour_volume(list(models), dataset.load_image(case)):
                doubt = found.doubt if found.doubt == found.doubt else None
                write_annotation(dataset, case_id, name, mask, reader=reader, doubt=doubt)
                rows.append((case_id, name, found.volume_cm3, found.doubt))
        progress("contouring cases", len(ids), len(ids))
    print_table("Contours", ["case", "structure", "cm³", "doubt"], rows)
    console.print(
        f"Reader {reader}. Look at them and decide: consilium review {dataset.folder}", soft_wrap=True
    )


def model_reader(digests: Sequence[str]) -> str:
    """The reader's pseudonym of one model or of several together."""
    return MODEL_READER + "-".join(digest[:8] for digest in digests[:5])


def write_source_note(out: Path, source: Path, header: SeriesHeader | None) -> None:
    """Note beside the contours which image they were drawn on."""
    (out / SOURCE_NOTE).parent.mkdir(mode=0o700, exist_ok=True)
    uid = "" if header is None else header.series_instance_uid
    record = {"path": str(source.resolve()), "series_instance_uid": uid}
    write_json(out / SOURCE_NOTE, record, mode=0o600)


def open_contoured(out: Path) -> Dataset:
    """The image and the contours of an output of ``consilium contour`` as a dataset of one case, in ``out``.

    Made at the first call from the image where it lies; a call that was interrupted is completed.

    Raises:
        DataError: The output does not say where its image is, or it is no longer there.
    """
    record = read_json(out / CONTOURS)
    if not (out / SOURCE_NOTE).exists():
        raise DataError(f"{out.name}: does not say on which image it was drawn. Contour the image again.")
    with progress_bar() as progress:
        source = _image_of(read_json(out / SOURCE_NOTE), progress)
        dataset = create_dataset(out / INNER_DATASET)
        case_id = dataset.private_part().case_id(source.identity)
        if case_id not in dataset.case_ids:
            dataset.add(source.read(progress))
        case = dataset.case(case_id)
        reader = model_reader(record["models"])
        doubts = {row["structure"]: row.get("doubt") for row in record["structures"]}
        frame = dataset.private_part().read_record(case_id).get("series", {}).get("FrameOfReferenceUID", "")
        drawn = {row["structure"]: bool(row["voxels"]) for row in record["structures"]}
        wanted = {name: drawn[name] for name in sorted(doubts) if case.annotation(name, reader) is None}
        files = {row["structure"]: _Place.of(record, row) for row in record["structures"]}
        dicom = _dicom_of(out, str(record.get("format", "")))
        for done, (name, mask) in enumerate(_masks(out, case.image.grid, wanted, frame, files, dicom)):
            progress("contours", done, len(wanted))
            write_annotation(dataset, case_id, name, mask, reader=reader, doubt=doubts[name])
    return dataset


def _image_of(note: dict[str, Any], progress: Progress) -> Source:
    path, uid = Path(note["path"]), note["series_instance_uid"]
    found = find_sources(path, ImportOptions(), progress).sources if path.exists() else ()
    for source in found:
        if not uid or source.identity == uid:
            return source
    raise DataError(
        "contours: the image that they were drawn on must be where it was; it is not there any more. Put it "
        "back, or contour it again where it is now."
    )


@dataclass(frozen=True)
class _Place:
    """Where a contour lies in NIfTI: a mask of its own (number 0), or a number in a cascade's label map."""

    file: str
    number: int

    @classmethod
    def of(cls, record: dict[str, Any], row: dict[str, Any]) -> "_Place":
        name = str(record.get("looked_for", row["structure"]))
        return cls(f"{file_name_of(name)}.nii.gz", int(row.get("number", 0)))


def _dicom_of(out: Path, form: str) -> Path | None:
    """The DICOM file of the contours; None for NIfTI. The folder may hold another of an earlier call."""
    names = [DICOM_NAMES[form]] if form in DICOM_NAMES else [] if form else list(DICOM_NAMES.values())
    return next((out / name for name in names if (out / name).exists()), None)


def _masks(
    out: Path, grid: Grid, wanted: dict[str, bool], frame: str, places: dict[str, _Place], dicom: Path | None
) -> Iterator[tuple[str, Mask]]:
    """The masks in the format in which they were written; ``wanted`` says which have any voxel."""
    drafts: dict[str, Any] = {}
    if dicom is not None and dicom.name == DICOM_NAMES["rtstruct"]:
        contours = read_rtstruct(dicom)
        placed = annotations_from_rtstruct(contours, grid, sop_uids=(), frame_of_reference_uid=frame)
        drafts = {a.structure: a.mask for a in placed.annotations}
    elif dicom is not None:
        found, _ = annotations_from_seg(dicom, grid, frame_of_reference_uid=frame, reader=MODEL_READER)
        drafts = {a.structure: a.mask for a in found}
    for name, any_voxel in wanted.items():
        file, number = out / places[name].file, places[name].number
        if not any_voxel:
            yield name, np.zeros(grid.shape_zyx, dtype=bool)
        elif drafts.get(name) is not None:
            yield name, drafts[name]() != 0
        elif file.exists():
            labels = read_nifti(file).array
            yield name, labels == number if number else labels != 0
        else:
            raise DataError(
                f"{out.name}: must hold the contour of {name}; it does not. Contour the image again."
            )
