"""``consilium adapt``: the planning contours follow the patient onto a repeat CT."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from consilium.adaptation.adapt import Adaptation
from consilium.adaptation.adapt import adapt as adapt_images
from consilium.adaptation.report import DayMasks, StructureChange, overall
from consilium.cases.dataset import file_name_of
from consilium.cases.files import write_json
from consilium.cases.nifti import read_nifti, write_displacements, write_nifti
from consilium.cli.adapt_page import StructurePicture, picture_of, write_report
from consilium.cli.console import console, print_table, progress_bar
from consilium.cli.contour import NIFTI_ENDINGS, read_input
from consilium.errors import ConfigurationError, DataError
from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks
from consilium.geometry.volume import Volume
from consilium.importers.dicom_series import SeriesHeader
from consilium.importers.dicom_study import private_record_of
from consilium.importers.rtstruct import annotations_from_rtstruct, read_rtstruct
from consilium.inference.model import Model, load_model
from consilium.types import Mask, Progress


def adapt(
    planning_ct: Annotated[Path, typer.Argument(help="Planning CT: DICOM folder or NIfTI file.")],
    planning_rtstruct: Annotated[
        Path, typer.Argument(help="Its RTSTRUCT; or a folder of NIfTI masks, one per structure.")
    ],
    repeat_ct: Annotated[Path, typer.Argument(help="Repeat CT of the same patient: DICOM or NIfTI.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; made if absent.")],
    model: Annotated[
        Path | None, typer.Option(help="Run or model file that refines the structures it knows.")
    ] = None,
    planning_series: Annotated[
        str, typer.Option(help="Last digits of the planning series' UID, where there are several.")
    ] = "",
    repeat_series: Annotated[
        str, typer.Option(help="Last digits of the repeat series' UID, where there are several.")
    ] = "",
    other_patient: Annotated[
        bool, typer.Option("--other-patient", help="Go on although the patient ids differ.")
    ] = False,
) -> None:
    """Carry the planning contours to a repeat CT: register, propagate, refine, report.

    Writes the contours (RTSTRUCT, or NIfTI for NIfTI), the deformation (deformation.nii.gz), and what changed
    (adaptation.html, adaptation.json) with a reason for every contour to check. All are proposals.
    """
    network = None if model is None else load_model(model)
    with progress_bar() as progress:
        planning, planning_header = read_input(planning_ct, planning_series, progress)
        repeat, repeat_header = read_input(repeat_ct, repeat_series, progress)
        if not other_patient:
            check_same_patient(planning_header, repeat_header)
        structures = read_structures(planning_rtstruct, planning, planning_header)
        adaptation = adapt_images(planning, structures, repeat, network, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        found: list[StructureChange] = []
        pictures: list[StructurePicture] = []
        masks = _noting(adaptation, repeat, found, pictures, progress)
        written = write_contours(out, masks, repeat, repeat_header, network)
        deformation = adaptation.registration.deformation
        write_displacements(out / "deformation.nii.gz", deformation.total_displacement_mm(), deformation.grid)
        figures = overall(adaptation.registration)
        digest = None if network is None else network.digest
        record = {"model": digest, "overall": figures, "structures": [change.to_json() for change in found]}
        write_json(out / "adaptation.json", record)
        write_report(out / "adaptation.html", adaptation, planning, repeat, found, pictures)
    _say(found, written, out)


def check_same_patient(planning: SeriesHeader | None, repeat: SeriesHeader | None) -> None:
    """Refuse two series whose patient ids differ.

    Raises:
        ConfigurationError: They do.
    """
    ids = [h.patient_identity for h in (planning, repeat) if h is not None and h.patient_identity]
    if len(set(ids)) > 1:
        raise ConfigurationError(
            "adapt: both CT must be of one patient; their patient ids differ. Check the folders; if the ids "
            "differ only because the files were de-identified one by one, go on with --other-patient."
        )


def read_structures(
    source: Path, planning: Volume, header: SeriesHeader | None
) -> Iterator[tuple[str, Mask]]:
    """Name and mask of every structure on the planning CT's grid, one at a time.

    Raises:
        DataError: A mask on another grid, or no mask at all.
        ConfigurationError: An RTSTRUCT for a NIfTI image, or a folder that does not hold one file.
        RefusedInput: An RTSTRUCT that cannot be used, or of another frame of reference.
    """
    if source.is_dir() and any(path.name.endswith(NIFTI_ENDINGS) for path in source.iterdir()):
        for path in sorted(path for path in source.iterdir() if path.name.endswith(NIFTI_ENDINGS)):
            mask = read_nifti(path)
            if not mask.grid.is_same_as(planning.grid):
                raise DataError(
                    f"{path.name}: must lie on the planning CT's grid; its shape is {mask.grid.shape_zyx}, "
                    f"the CT's {planning.grid.shape_zyx}. Resample it, or give the RTSTRUCT."
                )
            yield path.name.removesuffix(".gz").removesuffix(".nii"), mask.array > 0
        return
    if header is None:
        raise ConfigurationError(
            "adapt: a NIfTI planning CT needs a folder of NIfTI masks; an RTSTRUCT belongs to a DICOM series."
        )
    path = _one_rtstruct(source) if source.is_dir() else source
    placed = annotations_from_rtstruct(
        read_rtstruct(path),
        planning.grid,
        sop_uids=[s.sop_instance_uid for s in header.slices],
        frame_of_reference_uid=header.frame_of_reference_uid,
    )
    for finding in placed.findings:
        console.print(f"RTSTRUCT: {finding.message} {finding.remedy}", markup=False)
    for annotation in placed.annotations:
        if annotation.mask is not None:
            yield annotation.structure, annotation.mask()


def _one_rtstruct(folder: Path) -> Path:
    found = list(folder.glob("*.dcm"))
    if len(found) != 1:
        raise ConfigurationError(
            f"adapt: the folder of the planning RTSTRUCT must hold one .dcm file; it holds {len(found)}. "
            "Give the file itself."
        )
    return found[0]


def write_contours(
    out: Path,
    masks: Iterator[tuple[str, Mask]],
    repeat: Volume,
    header: SeriesHeader | None,
    network: Model | None,
) -> Path:
    """RTSTRUCT for a DICOM series, NIfTI masks for NIfTI; returns where."""
    if header is None:
        folder = out / "contours"
        folder.mkdir(exist_ok=True)
        for name, mask in masks:
            write_nifti(folder / f"{file_name_of(name)}.nii.gz", Volume(mask, repeat.grid))
        return folder
    path = out / "contours.dcm"
    export_rtstruct(
        path,
        rois_from_masks(masks, repeat.grid),
        repeat.grid,
        SeriesReference.from_record(private_record_of(header)),
        algorithm=Algorithm(
            name="consilium adapt", model_sha256="none" if network is None else network.digest
        ),
    )
    return path


def _noting(
    adaptation: Adaptation,
    repeat: Volume,
    found: list[StructureChange],
    pictures: list[StructurePicture],
    progress: Progress,
) -> Iterator[tuple[str, Mask]]:
    masks: DayMasks
    for masks, change in adaptation.contours(progress):
        found.append(change)
        pictures.append(picture_of(masks, repeat))
        yield masks.structure, masks.final


def _say(found: list[StructureChange], written: Path, out: Path) -> None:
    rows = [
        (
            change.structure,
            change.source,
            change.planning_volume_cm3,
            change.volume_cm3,
            change.surface_distance_mm,
            ", ".join(flag.code for flag in change.flags) or "–",
        )
        for change in found
    ]
    columns = ["structure", "by", "planning cm³", "now cm³", "surface moved mm", "check this"]
    print_table("Contours of the repeat CT", columns, rows)
    console.print(f"Written: {written}", markup=False, soft_wrap=True)
    console.print(f"Look at: {out / 'adaptation.html'}", markup=False, soft_wrap=True)
