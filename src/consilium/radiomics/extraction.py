"""Features of every contour of a dataset, or of one image and its masks."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.errors import GeometryError
from consilium.geometry.volume import Volume
from consilium.radiomics.features import compute_features
from consilium.radiomics.settings import RadiomicsSettings
from consilium.radiomics.stability import FeatureStability, compare_perturbations, measure_perturbations
from consilium.radiomics.table import ContourKey, FeatureRow
from consilium.types import Array, Mask, Progress, no_progress

Predict = Callable[[Case, Volume], Mapping[str, Array]]
"""(case, its image) → structure → mask or labelmap on the image's grid, as a model contours it."""

PREDICTION = "prediction"


@dataclass
class Skipped:
    """Contours without features, with the reason; filled while rows are taken."""

    reasons: list[tuple[ContourKey, str]] = field(default_factory=list)


def compute_contour_features(
    image: Volume, mask: Array, key: ContourKey, settings: RadiomicsSettings
) -> Iterator[FeatureRow]:
    """Features of one contour, computed in the orientation in which Z runs to Superior, Y to Posterior.

    Args:
        image: Intensities.
        mask: (Z, Y, X) on the image's grid; what is not 0 is inside.
        key: What to write beside the values.
        settings: Preparation and choice.

    Raises:
        GeometryError: As `compute_features`.
    """
    canonical, reorientation = image.to_canonical()
    contour = reorientation.apply(np.asarray(mask) != 0)
    spacing = canonical.grid.spacing_zyx_mm
    for feature in compute_features(canonical.array, contour, spacing, settings):
        yield FeatureRow(key, feature)


def compute_dataset_features(
    dataset: Dataset,
    settings: RadiomicsSettings,
    skipped: Skipped,
    *,
    structures: Iterable[str] | None = None,
    predict: Predict | None = None,
    progress: Progress = no_progress,
) -> Iterator[FeatureRow]:
    """Features of every contour of every case: per structure, instance and reader, and for the prediction.

    Args:
        dataset: Source.
        settings: Preparation and choice.
        skipped: Takes the contours that have no features (empty, or nothing in the intensity range).
        structures: Only these; None takes all.
        predict: Contours a case by a model; its rows have the reader `PREDICTION`.
        progress: Told after each case.

    Yields:
        Rows, case by case.
    """
    wanted = None if structures is None else set(structures)
    case_ids = dataset.case_ids
    for done, case_id in enumerate(case_ids):
        progress("computing features", done, len(case_ids))
        case = dataset.case(case_id)
        found = [name for name in case.structures if wanted is None or name in wanted]
        if not found and predict is None:
            continue
        image = dataset.load_image(case)
        for key, mask in _contours(dataset, case, found):
            yield from _rows(image, mask, key, settings, skipped)
        if predict is not None:
            for key, mask in _predicted(dataset, predict(case, image), case, wanted):
                yield from _rows(image, mask, key, settings, skipped)
    progress("computing features", len(case_ids), len(case_ids))


def _contours(dataset: Dataset, case: Case, structures: Iterable[str]) -> Iterator[tuple[ContourKey, Array]]:
    for structure in structures:
        several = any(instance.structure == structure for instance in case.instances)
        for annotation in case.annotations:
            if annotation.structure != structure or annotation.state is not State.CONTOURED:
                continue
            if annotation.proposed:  # nobody's contour: it must not count as a reader
                continue
            labels = dataset.load_instances(case, structure, annotation.reader)
            yield from _instances(labels, case, structure, several, annotation.reader, annotation.derived)


def _predicted(
    dataset: Dataset, found: Mapping[str, Array], case: Case, wanted: set[str] | None
) -> Iterator[tuple[ContourKey, Array]]:
    for structure, labels in found.items():
        if wanted is not None and structure not in wanted:
            continue
        several = any(instance.structure == structure for instance in case.instances)
        if several:
            reference = np.zeros(case.image.grid.shape_zyx, np.int32)
            for reader in case.readers(structure):
                np.maximum(reference, dataset.load_instances(case, structure, reader), out=reference)
            labels = number_like(labels, reference)
        yield from _instances(labels, case, structure, several, PREDICTION, False)


def number_like(labels: Array, reference: Array) -> Array:
    """Give predicted things the numbers of the reference things that they lie on.

    Args:
        labels: (Z, Y, X) labelmap, or a mask, whose connected pieces are then the things.
        reference: (Z, Y, X) labelmap, same shape.

    Returns:
        (Z, Y, X) int32: each predicted thing has the number of the reference thing that it overlaps most;
        those that overlap none have new numbers above all others.
    """
    binary = labels.dtype == np.bool_ or int(labels.max(initial=0)) <= 1
    pieces = ndimage.label(labels, np.ones((3, 3, 3)))[0] if binary else labels
    numbered = np.zeros(labels.shape, np.int32)
    following = int(reference.max(initial=0)) + 1
    for piece, box in enumerate(ndimage.find_objects(pieces.astype(np.int32)), start=1):
        if box is None:
            continue
        inside = pieces[box] == piece
        under = reference[box][inside]
        under = under[under > 0]
        if len(under):
            number = int(np.bincount(under).argmax())
        else:
            number, following = following, following + 1
        numbered[box][inside] = number
    return numbered


def _instances(
    labels: Array, case: Case, structure: str, several: bool, reader: str, derived: bool
) -> Iterator[tuple[ContourKey, Array]]:
    numbers = [int(n) for n in np.unique(labels) if n] if several else [0]
    for number in numbers:
        key = ContourKey(
            case_id=case.case_id,
            patient_id=case.patient_id,
            structure=structure,
            instance=number,
            reader=reader,
            derived=derived,
        )
        yield key, labels == number if several else labels


def _rows(
    image: Volume, mask: Array, key: ContourKey, settings: RadiomicsSettings, skipped: Skipped
) -> Iterator[FeatureRow]:
    try:
        yield from compute_contour_features(image, mask, key, settings)
    except GeometryError as error:
        skipped.reasons.append((key, str(error)))


def compute_perturbation_stability(
    dataset: Dataset,
    settings: RadiomicsSettings,
    rng: np.random.Generator,
    *,
    structures: Iterable[str] | None = None,
    repeats: int = 5,
    progress: Progress = no_progress,
) -> list[FeatureStability]:
    """How stable features are when each contour moves in and out by about a millimetre.

    Of every thing the first reader's contour is taken; contours without features are left out.

    Args:
        dataset: Source.
        settings: Preparation and choice.
        rng: Generator of the changes.
        structures: Only these; None takes all.
        repeats: Changed contours per contour.
        progress: Told after each case.

    Returns:
        One entry per structure and feature.
    """
    wanted = None if structures is None else set(structures)
    found: dict[str, list[list[Mapping[str, float]]]] = defaultdict(list)
    case_ids = dataset.case_ids
    for done, case_id in enumerate(case_ids):
        progress("changing contours", done, len(case_ids))
        case = dataset.case(case_id)
        image = dataset.load_image(case)
        seen = set()
        names = [name for name in case.structures if wanted is None or name in wanted]
        for key, labels in _contours(dataset, case, names):
            if key.derived or key.subject in seen:
                continue
            seen.add(key.subject)

            def compute(mask: Mask, key: ContourKey = key, image: Volume = image) -> dict[str, float]:
                rows = compute_contour_features(image, mask, key, settings)
                return {row.feature.tag: row.feature.value for row in rows}

            spacing = image.grid.spacing_zyx_mm
            try:
                measured = measure_perturbations(labels != 0, spacing, rng, compute, repeats=repeats)
            except GeometryError:
                continue
            found[key.structure].append(measured)
    progress("changing contours", len(case_ids), len(case_ids))
    return [entry for name, subjects in found.items() for entry in compare_perturbations(name, subjects)]
