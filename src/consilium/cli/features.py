"""``consilium features``: radiomics of a dataset's contours, or of one image and its masks, to a table."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import consilium
from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset, open_dataset
from consilium.cases.files import write_json
from consilium.cases.nifti import read_nifti
from consilium.cli.console import console, print_table, progress_bar
from consilium.errors import ConfigurationError, DataError, GeometryError
from consilium.geometry.volume import Volume
from consilium.radiomics.definitions import definitions, split_tag
from consilium.radiomics.extraction import (
    Predict,
    Skipped,
    compute_contour_features,
    compute_dataset_features,
    compute_perturbation_stability,
)
from consilium.radiomics.settings import RadiomicsSettings
from consilium.radiomics.settings_file import ct_settings, load_settings, settings_to_json
from consilium.radiomics.stability import STABILITY_COLUMNS, FeatureStability, compare_readers, stability_rows
from consilium.radiomics.table import ContourKey, FeatureRow, read_table, write_table
from consilium.types import Array

SEED = 20261123
NIFTI_ENDINGS = (".nii.gz", ".nii")


def features(
    source: Annotated[Path, typer.Argument(help="A dataset, or an image (NIfTI).", exists=True)],
    contours_or_out: Annotated[
        Path, typer.Argument(help="With an image: its mask (NIfTI) or a folder of masks; else OUT.csv.")
    ],
    out: Annotated[Path | None, typer.Argument(help="The table to write, with an image.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file of settings; default: 1 mm voxels, bins of 25 HU.")
    ] = None,
    structure: Annotated[
        list[str] | None, typer.Option(help="Only this structure; may be given several times.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="With a dataset: a run or model whose contours are measured too.")
    ] = None,
    stability: Annotated[
        bool, typer.Option(help="With a dataset: also write which features stay stable (OUT.stability.csv).")
    ] = False,
) -> None:
    """Compute radiomics features (IBSI-1) of every contour and write them as a table.

    [bold]consilium features DATASET OUT.csv[/bold] takes every structure, instance and reader of a dataset.
    [bold]consilium features IMAGE CONTOURS OUT.csv[/bold] takes one image and its masks.
    """
    chosen = ct_settings() if settings is None else load_settings(settings)
    skipped = Skipped()
    if out is None:
        table = _ending(contours_or_out)
        _of_dataset(source, table, chosen, structure, run, stability, skipped)
    else:
        if run is not None or stability:
            raise ConfigurationError("features: --run and --stability need a dataset; found an image.")
        table = _ending(out)
        write_table(table, _of_image(source, contours_or_out, chosen, structure, skipped))
    record = {
        "consilium": consilium.__version__,
        "settings": settings_to_json(chosen),
        "processing": chosen.describe(),
        "skipped": [
            {"case_id": k.case_id, "structure": k.structure, "why": why} for k, why in skipped.reasons
        ],
    }
    write_json(table.with_suffix(".json"), record)
    _say(table, skipped)


def _ending(path: Path) -> Path:
    if path.suffix != ".csv":
        raise ConfigurationError(f"features: the table must be named *.csv; found {path.name!r}.")
    return path


def _of_dataset(
    source: Path,
    table: Path,
    settings: RadiomicsSettings,
    structures: list[str] | None,
    run: Path | None,
    stability: bool,
    skipped: Skipped,
) -> None:
    dataset = open_dataset(source)
    unknown = sorted(set(structures or ()) - set(dataset.structures))
    if unknown:
        raise ConfigurationError(
            f"features: --structure must be among {list(dataset.structures)}; found {unknown}."
        )
    with progress_bar() as progress:
        rows = compute_dataset_features(
            dataset,
            settings,
            skipped,
            structures=structures,
            predict=None if run is None else _predictor(run, dataset),
            progress=progress,
        )
        write_table(table, rows)
        if stability:
            changes = compute_perturbation_stability(
                dataset, settings, np.random.default_rng(SEED), structures=structures, progress=progress
            )
            readers = compare_readers(read_table(table))
            _write_stability(table.with_suffix(".stability.csv"), readers, changes)


def _predictor(run: Path, dataset: Dataset) -> Predict:
    from consilium.inference.cascade import contour_instances
    from consilium.inference.cascade_file import find_cascade, load_cascade
    from consilium.inference.contour import contour_volume
    from consilium.inference.model import load_model

    file = find_cascade(run)
    if file is not None:
        cascade = load_cascade(file)

        def find(case: Case, image: Volume) -> Mapping[str, Array]:
            labels = contour_instances(cascade, image).labels
            annotation = case.annotation(cascade.structure)
            if annotation is not None and annotation.state is State.CONTOURED:
                labels = number_as(labels, dataset.load_instances(case, cascade.structure, annotation.reader))
            return {cascade.structure: labels}

        return find
    model = load_model(run)

    def predict(case: Case, image: Volume) -> Mapping[str, Array]:
        return {name: mask for name, mask, _ in contour_volume(model, image)}

    return predict


def number_as(labels: Array, reference: Array) -> Array:
    """Instances with the number of the reference's one that they overlap most; the others get new numbers.

    Args:
        labels: (Z, Y, X) numbers of instances, 0 is none.
        reference: Likewise.
    """
    numbered = np.zeros_like(labels)
    taken: set[int] = set()
    rest = []
    for number in np.unique(labels[labels > 0]):
        inside = labels == number
        under = reference[inside]
        under = under[(under > 0) & ~np.isin(under, list(taken))]
        if len(under):
            values, counts = np.unique(under, return_counts=True)
            best = int(values[counts.argmax()])
            taken.add(best)
            numbered[inside] = best
        else:
            rest.append(inside)
    highest = int(max(reference.max(), numbered.max()))
    for k, inside in enumerate(rest, start=1):
        numbered[inside] = highest + k
    return numbered


def _of_image(
    image_file: Path,
    contours: Path,
    settings: RadiomicsSettings,
    structures: list[str] | None,
    skipped: Skipped,
) -> Iterator[FeatureRow]:
    if image_file.is_dir():
        raise ConfigurationError(
            "features: IMAGE must be a NIfTI file; found a folder. For a dataset, give OUT.csv alone; "
            "of DICOM, make a dataset first (consilium import)."
        )
    image = read_nifti(image_file)
    for name, file in _mask_files(contours):
        mask = read_nifti(file)
        if not mask.grid.is_same_as(image.grid):
            raise GeometryError(
                f"{file.name}: must lie on the image's grid {image.grid.shape_zyx}; found "
                f"{mask.grid.shape_zyx} or another place. Resample the mask, or take its own image."
            )
        found = np.unique(mask.array)
        if not np.array_equal(found, np.rint(found)):
            raise DataError(
                f"{file.name}: a mask must hold whole numbers; found values of {found.min():g} to "
                f"{found.max():g}. Make a mask of the probabilities first, e.g. of those from 0.5 on."
            )
        values = [int(v) for v in found if v]
        for value in values:
            label = name if values == [1] or len(values) == 1 else f"{name}-{value}"
            if structures and label not in structures:
                continue
            key = ContourKey(
                case_id="image", patient_id="image", structure=label, instance=0, reader="contours"
            )
            try:
                yield from compute_contour_features(image, mask.array == value, key, settings)
            except GeometryError as error:
                skipped.reasons.append((key, str(error)))
        if not values:
            key = ContourKey(
                case_id="image", patient_id="image", structure=name, instance=0, reader="contours"
            )
            skipped.reasons.append((key, "The mask is empty."))


def _mask_files(contours: Path) -> list[tuple[str, Path]]:
    files = sorted(contours.iterdir()) if contours.is_dir() else [contours]
    found = []
    for file in files:
        ending = next((e for e in NIFTI_ENDINGS if file.name.endswith(e)), None)
        if ending is not None:
            found.append((file.name.removesuffix(ending), file))
    if not found:
        raise ConfigurationError(
            f"features: CONTOURS must be a NIfTI mask or a folder of them; found none in {contours.name!r}."
        )
    return found


def _write_stability(
    path: Path, readers: Iterable[FeatureStability], changes: Iterable[FeatureStability]
) -> None:
    rows = [*stability_rows("readers", readers), *stability_rows("contour changes", changes)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, STABILITY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    grades = ("excellent", "good", "moderate", "poor", "unknown")
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        group = counts.setdefault((str(row["compared"]), str(row["structure"])), dict.fromkeys(grades, 0))
        group[str(row["grade"])] += 1
    if counts:
        print_table(
            "Features by the lower end of ICC(1,1)",
            ("compared", "structure", *grades),
            [(*key, *group.values()) for key, group in counts.items()],
        )
    console.print(f"Stability: {path}", highlight=False)


def _say(table: Path, skipped: Skipped) -> None:
    rows = read_table(table)
    contours: dict[tuple[str, str], set[object]] = {}
    for row in rows:
        contours.setdefault((row.contour.structure, row.contour.reader), set()).add(row.contour)
    per_contour = len({row.feature.tag for row in rows})
    families = {definitions()[split_tag(row.feature.tag)[0]].family for row in rows}
    print_table(
        f"{len(rows)} values: {per_contour} features of {len(families)} families",
        ("structure", "reader", "contours"),
        [(*key, len(found)) for key, found in sorted(contours.items())],
    )
    for key, why in skipped.reasons:
        console.print(f"Left out: {key.case_id} {key.structure} {key.reader}: {why}", markup=False)
    console.print(f"Table: {table}", highlight=False)
