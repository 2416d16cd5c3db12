"""``consilium contour``: apply a model, or several, to a CT that it has never seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.cases.dataset import MANIFEST, file_name_of, open_dataset
from consilium.cases.files import write_json
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.cli import cascades
from consilium.cli.console import console, print_table, progress_bar
from consilium.cli.contoured import DICOM_NAMES, contour_dataset, write_source_note
from consilium.errors import ConfigurationError, DataError
from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.dicom_seg import export_seg
from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks
from consilium.geometry.volume import Grid, Volume
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.dicom_series import SeriesHeader, read_series
from consilium.importers.dicom_study import private_record_of
from consilium.inference.cascade_file import find_cascade, load_cascade
from consilium.inference.contour import Contoured, contour_prediction, entropy_on_grid, predict
from consilium.inference.model import Model, load_model
from consilium.inference.openvino import choose_engine
from consilium.review.places import CONTOURS
from consilium.types import Mask, Progress

NIFTI_ENDINGS = (".nii", ".nii.gz")
FORMATS = ("rtstruct", "seg", "nifti")


def contour(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Runs or model files, then the input and the output folder; or a dataset alone."),
    ],
    output_format: Annotated[
        str, typer.Option("--format", help="rtstruct, seg or nifti; by default as the input is.")
    ] = "",
    series: Annotated[
        str, typer.Option(help="Last digits of the series' UID, where there are several.")
    ] = "",
    doubt: Annotated[
        bool, typer.Option("--doubt", help="Also write a map of where the model is in doubt (NIfTI).")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, torch or openvino. auto takes OpenVINO where it is installed "
            "(the extra openvino) and faster: measured once per model and machine."
        ),
    ] = "auto",
) -> None:
    """RUN... INPUT OUTPUT: contour a DICOM folder or a NIfTI file. RUN... DATASET: contour every case of it.

    Of several runs the mean probability counts. A cascade gives one numbered contour with its confidence per
    thing found; that nothing was found is an answer. The contours are proposals (UNAPPROVED): look at them
    with consilium review OUTPUT. In a dataset they become a reader of their own, model-…, which trains and
    scores nothing; cases that have it are skipped.
    """
    cascade = find_cascade(paths[0])
    if cascade is not None and len(paths) >= 2:
        _use_cascade(cascade, paths[1:], output_format, series, doubt)
        return
    if len(paths) >= 2 and (paths[-1] / MANIFEST).exists():
        if output_format or series or doubt:
            raise ConfigurationError(
                "contour: --format, --series and --doubt are for one image; a dataset takes contours as a "
                "reader of its own. Leave them out, or name the image and an output folder."
            )
        models = [choose_engine(load_model(run), engine) for run in paths[:-1]]
        contour_dataset(models, open_dataset(paths[-1]))
        return
    if len(paths) < 3:
        raise ConfigurationError(
            f"contour: needs a run or model file, an input and an output folder; got {len(paths)} paths."
        )
    *runs, source, out = paths
    models = [choose_engine(load_model(run), engine) for run in runs]
    with progress_bar() as progress:
        volume, header = read_input(source, series, progress)
        chosen = choose_format(output_format, header)
        prediction = predict(models, volume, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        found: list[Contoured] = []
        masks = _noting(contour_prediction(prediction, volume.grid, progress=progress), found)
        if header is not None and chosen != "nifti":
            written = out / DICOM_NAMES[chosen]
            write_dicom(
                written, chosen, masks, volume.grid, header, name=_name(models), digest=models[0].digest
            )
        else:
            written = out
            for name, mask in masks:
                write_nifti(out / f"{file_name_of(name)}.nii.gz", Volume(mask, volume.grid))
        if doubt:
            write_nifti(out / "doubt.nii.gz", Volume(entropy_on_grid(prediction, volume.grid), volume.grid))
    write_json(out / CONTOURS, {"format": chosen, **_record(found, models)})
    write_source_note(out, source, header)
    print_table(
        "Contours",
        ["structure", "cm³", "doubt"],
        [(f.structure, f.volume_cm3, f.doubt) for f in found],
    )
    console.print(f"Written: {written}", markup=False, soft_wrap=True)
    console.print(f"Look at them and decide: consilium review {out}", markup=False, soft_wrap=True)


def structures_of(run: Path) -> tuple[str, ...]:
    """What a run, a model file or a cascade contours."""
    cascade = find_cascade(run)
    return load_model(run).structures if cascade is None else (load_cascade(cascade).structure,)


def build_drawer(runs: Sequence[Path]) -> Callable[[Volume], tuple[Iterator[tuple[str, Mask]], str, str]]:
    """Load runs, model files or one cascade once; the function gives an image's masks, name and digest."""
    cascade = find_cascade(runs[0])
    if cascade is not None and len(runs) == 1:
        return lambda volume: cascades.draw(cascade, volume)
    models = [load_model(run) for run in runs]

    def draw(volume: Volume) -> tuple[Iterator[tuple[str, Mask]], str, str]:
        prediction = predict(models, volume)
        masks = ((name, mask) for name, mask, _ in contour_prediction(prediction, volume.grid))
        return masks, _name(models), models[0].digest

    return draw


def _use_cascade(file: Path, paths: list[Path], output_format: str, series: str, doubt: bool) -> None:
    if doubt or len(paths) > 2:
        raise ConfigurationError("contour: a cascade is used alone, and without --doubt.")
    if (paths[-1] / MANIFEST).exists():
        cascades.contour_dataset(file, open_dataset(paths[-1]))
        return
    if len(paths) < 2:
        raise ConfigurationError("contour: needs a cascade, an input and an output folder, or a dataset.")
    source, out = paths
    with progress_bar() as progress:
        volume, header = read_input(source, series, progress)
        chosen = choose_format(output_format, header)
        digest, result = cascades.find(file, volume, progress)
    out.mkdir(parents=True, exist_ok=True)
    if header is not None and chosen != "nifti":
        written = out / DICOM_NAMES[chosen]
        masks = cascades.instance_masks(result)
        write_dicom(written, chosen, masks, volume.grid, header, name=cascades.ALGORITHM, digest=digest)
    else:
        written = out / f"{file_name_of(result.structure)}.nii.gz"
        write_nifti(written, Volume(result.labels, volume.grid))
    write_json(out / CONTOURS, {"format": chosen, **cascades.result_record(result, digest)})
    write_source_note(out, source, header)
    cascades.print_found(result)
    console.print(f"Written: {written}", markup=False, soft_wrap=True)
    console.print(f"Look at them and decide: consilium review {out}", markup=False, soft_wrap=True)


def write_dicom(
    path: Path,
    form: str,
    masks: Iterator[tuple[str, Mask]],
    grid: Grid,
    header: SeriesHeader,
    *,
    name: str,
    digest: str,
) -> None:
    """Write a model's contours of a series as one RTSTRUCT (``"rtstruct"``) or DICOM SEG (``"seg"``)."""
    record = private_record_of(header)
    if form == "seg":
        export_seg(path, list(masks), grid, record, algorithm=name, model_sha256=digest)
        return
    export_rtstruct(
        path,
        rois_from_masks(masks, grid),
        grid,
        SeriesReference.from_record(record),
        algorithm=Algorithm(name=name, model_sha256=digest),
    )


def choose_format(wanted: str, header: SeriesHeader | None) -> str:
    """The output's format; by default as the input is.

    Raises:
        ConfigurationError: Not known, or DICOM out of NIfTI.
    """
    chosen = wanted or ("rtstruct" if header is not None else "nifti")
    if chosen not in FORMATS:
        raise ConfigurationError(f"--format: must be one of {FORMATS}; got {chosen!r}.")
    if chosen != "nifti" and header is None:
        raise ConfigurationError(f"--format: {chosen} needs a DICOM input; the input is NIfTI.")
    return chosen


def read_input(source: Path, series: str, progress: Progress) -> tuple[Volume, SeriesHeader | None]:
    """The image of a NIfTI file, or of the one series of a DICOM folder with its header.

    Raises:
        ConfigurationError: The folder holds several series, and none or no single one was named.
        DataError: It holds none.
    """
    if source.is_file() and source.name.endswith(NIFTI_ENDINGS):
        return read_nifti(source), None
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    scan = scan_dicom(files, progress=progress)
    found = [header for header in scan.series if header.series_instance_uid.endswith(series)]
    if not found:
        reasons = "; ".join(str(refusal) for refusal in scan.refused[:3])
        raise DataError(
            f"{source.name}: must hold a CT series; found none that can be used. "
            f"{reasons or 'Export it again.'}"
        )
    if len(found) > 1:
        names = ", ".join(f"{header.name} ({len(header.slices)} slices)" for header in found)
        raise ConfigurationError(
            f"{source.name}: holds several series: {names}. Name one by its last digits: --series 1234"
        )
    volume, findings = read_series(found[0], progress=progress)
    for finding in findings:
        console.print(f"{found[0].name}: {finding.message} {finding.remedy}", markup=False)
    return volume, found[0]


def _noting(
    results: Iterator[tuple[str, Mask, Contoured]], found: list[Contoured]
) -> Iterator[tuple[str, Mask]]:
    for name, mask, figures in results:
        found.append(figures)
        yield name, mask


def _name(models: list[Model]) -> str:
    kind = models[0].description.network.kind
    return f"consilium {kind}" if len(models) == 1 else f"consilium {len(models)} x {kind}"


def _record(found: list[Contoured], models: list[Model]) -> Mapping[str, Any]:
    return {
        "models": [model.digest for model in models],
        "structures": [
            {
                "structure": f.structure,
                "voxels": f.voxels,
                "volume_cm3": f.volume_cm3,
                "doubt": f.doubt if f.doubt == f.doubt else None,
            }
            for f in found
        ],
    }
