"""``consilium export``: dataset -> RTSTRUCT, DICOM SEG, NIfTI or an nnU-Net raw folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

KINDS = ("rtstruct", "seg", "nifti", "nnunet")


def export(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; made if absent.")],
    to: Annotated[str, typer.Option(help="rtstruct, seg, nifti or nnunet.")],
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeatable.")] = None,
    structure: Annotated[list[str] | None, typer.Option(help="Only this structure; repeatable.")] = None,
    reader: Annotated[str | None, typer.Option(help="Whose contours.")] = None,
) -> None:
    """Write cases in another format.

    RTSTRUCT and SEG go back to the hospital's own systems: they carry the original identifiers. NIfTI and
    nnU-Net carry none.
    """
    from consilium.cases.dataset import open_dataset
    from consilium.cli.console import console, print_table, progress_bar
    from consilium.errors import ConfigurationError, DataError
    from consilium.exporters.nifti import export_nifti
    from consilium.exporters.nnunet import export_nnunet

    if to not in KINDS:
        raise ConfigurationError(f"--to must be one of {', '.join(KINDS)}; got {to!r}.")
    opened = open_dataset(dataset)
    cases = [opened.case(case_id) for case_id in case or opened.case_ids]
    names = tuple(structure or ())
    _check_known(cases, names, reader)
    if reader is not None and not names:
        names = tuple(sorted({a.structure for one in cases for a in one.annotations if a.reader == reader}))
    refused: list[tuple[str, str]] = []
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        if to == "nnunet":
            record = export_nnunet(opened, cases, out, structures=names, reader=reader, progress=progress)
            console.print(f"{len(cases)} cases, labels: {', '.join(record['labels'])}.", markup=False)
            return
        for number, one in enumerate(cases, start=1):
            try:
                if to == "nifti":
                    said = f"{export_nifti(opened, one, out, structures=names, reader=reader)} structures"
                else:
                    said = _export_clinical(opened, one, out, to=to, names=names, reader=reader)
            except DataError as error:
                refused.append((one.case_id, str(error)))
                said = "refused"
            progress("exporting cases", number, len(cases))
            console.print(f"{one.case_id}: {said}", markup=False, highlight=False)
    if refused:
        print_table("Refused", ("case", "reason and what to do"), refused)
        raise typer.Exit(1)


def _check_known(cases: list[Any], names: tuple[str, ...], reader: str | None) -> None:
    """Refuse a structure or reader that no case has: it is misspelt, and nothing would be written."""
    from consilium.errors import ConfigurationError

    asked = {"--structure": (names, {a.structure for case in cases for a in case.annotations})}
    asked["--reader"] = ((reader,) if reader else (), {a.reader for case in cases for a in case.annotations})
    for option, (wanted, known) in asked.items():
        strange = [name for name in wanted if name not in known]
        if strange:
            raise ConfigurationError(
                f"{option}: must be one of {', '.join(sorted(known)) or 'none'}; got {strange[0]!r}."
            )


def _export_clinical(
    dataset: Any, case: Any, out: Path, *, to: str, names: tuple[str, ...], reader: str | None
) -> str:
    """One RTSTRUCT or SEG of the contours that the dataset holds."""
    from consilium.cases.case import MODEL_READER, State
    from consilium.exporters.dicom_reference import SeriesReference
    from consilium.exporters.dicom_seg import export_seg
    from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks

    record = dataset.private_part().read_record(case.case_id)
    chosen = [s for s in names or case.structures if case.state(s, reader) is State.CONTOURED]
    if not chosen:
        return "nothing contoured, nothing written"
    called = _names_to_write(record, case, chosen, reader)
    masks = ((called[s], dataset.load_mask(case, s, reader)) for s in chosen)
    path = out / f"{case.case_id}_{to}.dcm"
    grid = case.image.grid
    model = reader.removeprefix(MODEL_READER) if reader and reader.startswith(MODEL_READER) else ""
    if to == "seg":
        drawn_by = {"algorithm": "consilium", "model_sha256": model} if model else {}
        return f"{len(chosen)} segments, {export_seg(path, list(masks), grid, record, **drawn_by)}"
    written = export_rtstruct(
        path,
        rois_from_masks(masks, grid),
        grid,
        SeriesReference.from_record(record),
        algorithm=Algorithm(
            name="consilium", model_sha256=model or "none", generation="AUTOMATIC" if model else "MANUAL"
        ),
    )
    empty = [roi.name for roi in written.rois if not roi.contours]
    return f"{len(chosen)} structures" + (f", without contours: {', '.join(empty)}" if empty else "")


def _names_to_write(record: Any, case: Any, chosen: list[str], reader: str | None) -> dict[str, str]:
    """The hospital's own names; a structure whose own is empty or a second one's keeps its name here."""
    called: dict[str, str] = {}
    for structure in chosen:
        original = _original_name(record, case, structure, reader).strip()
        usable = original.isprintable() and "\\" not in original
        free = original not in {"", *called.values(), *chosen}
        called[structure] = original if usable and free else structure
    return called


def _original_name(record: Any, case: Any, structure: str, reader: str | None) -> str:
    """The name that the hospital gave a structure; two structure sets may have given two."""
    named = record.get("structure_names", {})
    whose = case.annotation(structure, reader).reader
    # Records of datasets made before names were kept by reader hold texts.
    name = named.get(whose, {}).get(structure) if isinstance(named.get(whose), dict) else named.get(structure)
    return name[:64] if isinstance(name, str) else structure
