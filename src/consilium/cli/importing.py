"""``consilium import``: outside -> dataset, the good cases in, each refused one with reason and remedy."""

from pathlib import Path
from typing import Annotated, Any

import typer


def import_(
    source: Annotated[Path, typer.Argument(help="DICOM, NIfTI or nnU-Net folder (or one NIfTI file).")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder; made if absent.")],
    allow_missing_slices: Annotated[
        bool, typer.Option(help="Fill gaps between slices by interpolation, with a finding.")
    ] = False,
    modality: Annotated[list[str] | None, typer.Option(help="DICOM modality to take; repeatable.")] = None,
    replace: Annotated[bool, typer.Option(help="Take the new content of cases that changed.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Read and check everything, write nothing.")] = False,
) -> None:
    """Import everything that can be a case; safe to interrupt and to run again.

    What is there already is skipped. A case that cannot be imported is listed with its reason and what to do;
    the others are imported all the same. Exit code 1 if any was refused.
    """
    from consilium.cases.dataset import create_dataset
    from consilium.cases.files import write_json
    from consilium.cases.validate import IMPORT_REPORT
    from consilium.cli.console import progress_bar
    from consilium.errors import ConfigurationError
    from consilium.importers.sources import ImportOptions, find_sources

    if dataset.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(
            "dataset: must lie outside the source; it lies inside, where its own images would be imported "
            "again under other pseudonyms. Name a folder beside the source, or move the dataset there."
        )
    options = ImportOptions(
        allow_missing_slices=allow_missing_slices, modalities=tuple(m.upper() for m in modality or ["CT"])
    )
    with progress_bar() as progress:
        found = find_sources(source, options, progress)
        target = None if dry_run else create_dataset(dataset)
        done = _import_all(found, target, replace=replace, progress=progress)
    refused = [{"where": r.where, "reason": r.reason, "remedy": r.remedy} for r in found.refused]
    refused += done["refused"]
    report = {
        "imported": done["imported"],
        "unchanged": done["unchanged"],
        "refused": refused,
        "left_out": dict(found.left_out),
    }
    if target is not None:
        locations: dict[str, list[str]] = {}
        for s in found.sources:
            # Of a hundred series some end in the same four digits.
            locations.setdefault(s.name, []).append(str(s.location))
        write_json(target.folder / IMPORT_REPORT, report)
        write_json(target.folder / "private" / "import-sources.json", locations, mode=0o600)
    _print_report(report, found_any=bool(found.sources), dry_run=dry_run)
    if refused or not found.sources:
        raise typer.Exit(1)


def _import_all(found: Any, target: Any, *, replace: bool, progress: Any) -> dict[str, list[Any]]:
    """Add every source; a refusal of one does not stop the others."""
    from consilium.errors import DataError, RefusedInput

    done: dict[str, list[Any]] = {"imported": [], "unchanged": [], "refused": []}
    for number, source in enumerate(found.sources, start=1):
        progress("importing cases", number - 1, len(found.sources))
        try:
            _import_one(source, target, done, replace=replace)
        except RefusedInput as refusal:
            done["refused"].append({"where": source.name, "reason": refusal.reason, "remedy": refusal.remedy})
        except DataError as error:
            done["refused"].append({"where": source.name, "reason": str(error), "remedy": ""})
        progress("importing cases", number, len(found.sources))
    return done


def _import_one(source: Any, target: Any, done: dict[str, list[Any]], *, replace: bool) -> None:
    from consilium.cases.dataset import Added
    from consilium.types import no_progress

    if target is None:
        draft = source.read(no_progress)
        for annotation in draft.annotations:
            if annotation.mask is not None:
                annotation.mask()
        done["imported"].append(_summary("(dry run)", draft.annotations, draft.findings))
        return
    case_id = target.private_part().case_id(source.identity)
    there = case_id in target.case_ids and not (replace and _is_damaged(target, case_id))
    if there and dict(target.case(case_id).provenance.source_sha256) == source.digests():
        done["unchanged"].append(case_id)
        return
    case, added = target.add(source.read(no_progress), replace=replace)
    if added is Added.UNCHANGED:
        done["unchanged"].append(case.case_id)
    else:
        done["imported"].append(_summary(case.case_id, case.annotations, case.findings))


def _is_damaged(target: Any, case_id: str) -> bool:
    """Whether the case's files are not as they were written; what looks like an identifier is no damage."""
    from consilium.cases.validate import Severity, validate_case

    found = validate_case(target, case_id)
    return any(f.severity is Severity.ERROR and f.code != "identifier" for f in found)


def _summary(case_id: str, annotations: Any, findings: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "annotations": len(annotations),
        "findings": [{"code": f.code, "message": f.message, "remedy": f.remedy} for f in findings],
    }


def _print_report(report: dict[str, Any], *, found_any: bool, dry_run: bool) -> None:
    from consilium.cli.console import console, print_table

    if not found_any and not report["refused"]:
        console.print("Nothing to import was found: no image series, no NIfTI image.")
    noted = [(c["case_id"], f["code"], f["message"]) for c in report["imported"] for f in c["findings"]]
    if noted:
        print_table("Imported with findings", ("case", "finding", "what was found"), noted)
    if report["left_out"]:
        print_table("Left out", ("files", "reason"), [(n, why) for why, n in report["left_out"].items()])
    if report["refused"]:
        rows = [(r["where"], r["reason"], r["remedy"]) for r in report["refused"]]
        print_table("Refused", ("source", "reason", "what to do"), rows)
    verb = "would be imported" if dry_run else "imported"
    console.print(
        f"{len(report['imported'])} cases {verb}, {len(report['unchanged'])} there already, "
        f"{len(report['refused'])} refused."
    )
