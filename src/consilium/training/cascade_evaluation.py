"""A cascade on whole scans: what it finds, how well it contours, and how well the readers agree there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from consilium.cases.case import Case, Instance, State
from consilium.cases.dataset import Dataset
from consilium.errors import RunError
from consilium.geometry.volume import Volume
from consilium.inference.cascade import Cascade, CascadeResult, contour_instances
from consilium.metrics.detection import (
    CPM_FALSE_POSITIVES_PER_SCAN,
    Froc,
    NoduleDice,
    ScanFindings,
    ScanMatches,
    bootstrap_cpm,
    bootstrap_sensitivity,
    compute_froc,
    compute_nodule_dice,
    match_scan,
)
from consilium.metrics.intervals import Interval, bootstrap_mean
from consilium.metrics.readers import compute_reader_agreement
from consilium.training.data import usable_annotation
from consilium.training.detection import sort_instances
from consilium.types import Array, Progress, no_progress

SEED = 20261125
SIZES_MM = (0.0, 5.0, 7.0, 10.0, 15.0, 1000.0)
AT_FALSE_POSITIVES = 1.0
"""The table by size reads the sensitivity at so many false positives per scan."""

DEFINITIONS = (
    "A candidate hits a thing if it lies nearer to its centre than its radius (LUNA16's rules); further hits "
    "on it, and hits on what is to be ignored, count neither way. CPM: mean sensitivity at 1/8, 1/4, 1/2, 1, "
    "2, 4 and 8 false positives per scan. Intervals: bootstrap over scans. Whole-scan Dice: of each thing "
    "with the contour that overlaps it best, a missed one counts 0."
)


@dataclass(frozen=True, kw_only=True)
class EvaluatedScan:
    """One scan.

    Attributes:
        case_id: Pseudonym.
        patient_id: Pseudonym.
        things: What is to be found.
        matches: Of the contoured instances, by their confidence.
        detector_matches: Of the detector's own candidates, by their score.
        dice: Per thing over the whole scan, at ``least_confidence``; None where nobody outlined it.
        readers_dice: Mean Dice between readers over the things that two or more outlined; NaN without any.
        model_dice: Mean Dice of the model with each of those readers on the same things.
        contours: How many the cascade drew, of any confidence.
    """

    case_id: str
    patient_id: str
    things: tuple[Instance, ...]
    matches: ScanMatches
    detector_matches: ScanMatches
    dice: NoduleDice | None
    readers_dice: float
    model_dice: float
    contours: int


@dataclass(frozen=True, kw_only=True)
class ScanLabels:
    """One scan with both contours, for pictures.

    Attributes:
        image: The scan.
        reference: Numbers of the things (Z, Y, X); None where nobody outlined them.
        result: What the cascade said.
        things: What is to be found.
    """

    case_id: str
    image: Volume
    reference: Array | None
    result: CascadeResult
    things: tuple[Instance, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What counts in an evaluation.

    Args:
        ignored: Structures whose instances are neither to be found nor wrong.
        least_readers: Instances that fewer readers saw are ignored too; 0 counts as 1.
        reader: Whose outlines are the reference.
        least_confidence: Contours below it do not count for Dice.
    """

    ignored: tuple[str, ...] = ()
    least_readers: int = 1
    reader: str | None = None
    least_confidence: float = 0.3


def evaluate_cascade(
    cascade: Cascade,
    dataset: Dataset,
    case_ids: Sequence[str],
    chosen: Chosen,
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[ScanLabels, EvaluatedScan]]:
    """Find and contour in each scan and compare; one scan at a time.

    Raises:
        RunError: No case says anything about the structure.
    """
    said = 0
    for done, case_id in enumerate(case_ids):
        case = dataset.case(case_id)
        progress("evaluating", done, len(case_ids))
        annotation = usable_annotation(case, cascade.structure, chosen.reader)
        wanted, excluded = sort_instances(
            case, cascade.structure, ignored=chosen.ignored, least_readers=chosen.least_readers
        )
        if annotation is None and not wanted:
            continue
        said += 1
        image = dataset.load_image(case)
        result = contour_instances(cascade, image, least_confidence=0.0)
        sure = sure_labels(result, chosen.least_confidence)
        reference = dice = None
        if annotation is not None:
            outlined = dataset.load_instances(case, cascade.structure, annotation.reader)
            reference = _numbers_of(outlined, wanted)
            dice = compute_nodule_dice(reference, without_ignored(sure, outlined, reference))
        readers, model = _agreement(dataset, case, wanted, sure)
        found = [(i.candidate.centre_lps_mm, i.confidence) for i in result.instances]
        raw = [(c.centre_lps_mm, c.score) for c in result.candidates]
        labels = ScanLabels(
            case_id=case_id, image=image, reference=reference, result=result, things=tuple(wanted)
        )
        yield (
            labels,
            EvaluatedScan(
                case_id=case_id,
                patient_id=case.patient_id,
                things=tuple(wanted),
                matches=match_candidates(wanted, excluded, found),
                detector_matches=match_candidates(wanted, excluded, raw),
                dice=dice,
                readers_dice=readers,
                model_dice=model,
                contours=len(result.instances),
            ),
        )
        progress("evaluating", done + 1, len(case_ids))
    if not said:
        raise RunError(
            f"evaluation: at least one case must say something about {cascade.structure!r}; none does."
        )


def sure_labels(result: CascadeResult, least_confidence: float) -> Array:
    """Numbers (Z, Y, X) of the instances that are at least so sure."""
    sure = [i.number for i in result.instances if i.confidence >= least_confidence]
    return np.where(np.isin(result.labels, sure), result.labels, 0)


def without_ignored(labels: Array, outlined: Array, reference: Array) -> Array:
    """Numbers (Z, Y, X) without contours that touch only outlined things that are to be ignored."""
    ignored = np.unique(labels[(outlined != 0) & (reference == 0)])
    right = np.unique(labels[reference != 0])
    return np.where(np.isin(labels, np.setdiff1d(ignored, right)), 0, labels)


def match_candidates(
    wanted: Sequence[Instance],
    excluded: Sequence[Instance],
    candidates: Sequence[tuple[tuple[float, float, float], float]],
) -> ScanMatches:
    """One scan by LUNA16's rules; candidates are (centre in LPS mm, score)."""
    return match_scan(
        ScanFindings(
            nodule_points_lps_mm=_points([i.centre_lps_mm for i in wanted]),
            nodule_diameters_mm=np.array([i.diameter_mm for i in wanted], float),
            candidate_points_lps_mm=_points([point for point, _ in candidates]),
            candidate_scores=np.array([score for _, score in candidates], float),
            excluded_points_lps_mm=_points([i.centre_lps_mm for i in excluded]),
            excluded_diameters_mm=np.array([i.diameter_mm for i in excluded], float),
        )
    )


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Things of one size: how many, found at all, and found at `AT_FALSE_POSITIVES` per scan."""

    low_mm: float
    high_mm: float
    things: int
    found: float
    sensitivity: float


@dataclass(frozen=True, kw_only=True)
class CascadeSummary:
    """Every figure over all scans; NaN where nothing was measured.

    Attributes:
        froc: Of the cascade.
        detector_froc: Of the detector's candidates alone.
        cpm: With its interval.
        detector_cpm: Likewise.
        sensitivities: False positives per scan -> sensitivity with its interval.
        sizes: By diameter.
        dice: Whole-scan Dice per scan with things, a missed one 0.
        dice_of_found: The same of the things found only.
        false_contours: Contours that touch no thing, per scan.
        readers_dice: Between readers, over scans.
        model_dice: Model with reader on the same things.
    """

    froc: Froc
    detector_froc: Froc
    cpm: Interval
    detector_cpm: Interval
    sensitivities: dict[float, Interval]
    sizes: tuple[SizeRow, ...]
    dice: Interval
    dice_of_found: Interval
    false_contours: Interval
    readers_dice: Interval
    model_dice: Interval


def summarise_scans(scans: Sequence[EvaluatedScan]) -> CascadeSummary:
    """All figures with intervals that resample scans."""
    rng = np.random.default_rng(SEED)
    matches = [scan.matches for scan in scans]
    raw = [scan.detector_matches for scan in scans]
    froc = compute_froc(matches)
    dices = [scan.dice for scan in scans if scan.dice is not None]

    def mean(values: Sequence[float]) -> Interval:
        return bootstrap_mean([v for v in values if v == v], rng)

    return CascadeSummary(
        froc=froc,
        detector_froc=compute_froc(raw),
        cpm=bootstrap_cpm(matches, rng),
        detector_cpm=bootstrap_cpm(raw, rng),
        sensitivities={
            rate: bootstrap_sensitivity(matches, rng, rate) for rate in CPM_FALSE_POSITIVES_PER_SCAN
        },
        sizes=_by_size(scans, froc),
        dice=mean([d.mean for d in dices]),
        dice_of_found=mean([d.mean_of_found for d in dices]),
        false_contours=mean([float(d.false_positives) for d in dices]),
        readers_dice=mean([scan.readers_dice for scan in scans]),
        model_dice=mean([scan.model_dice for scan in scans]),
    )


def summary_to_json(summary: CascadeSummary, scans: Sequence[EvaluatedScan]) -> dict[str, Any]:
    """Everything as JSON; NaN and infinity as None."""

    def plain(value: Interval) -> dict[str, Any]:
        return {key: _finite(one) for key, one in vars(value).items()}

    return {
        "definitions": DEFINITIONS,
        "scans": len(scans),
        "things": summary.froc.nodules,
        "cpm": plain(summary.cpm),
        "detector_cpm": plain(summary.detector_cpm),
        "sensitivity_at_false_positives": {
            str(rate): plain(one) for rate, one in summary.sensitivities.items()
        },
        "sizes": [{key: _finite(one) for key, one in vars(row).items()} for row in summary.sizes],
        "dice": plain(summary.dice),
        "dice_of_found": plain(summary.dice_of_found),
        "false_contours_per_scan": plain(summary.false_contours),
        "readers_dice": plain(summary.readers_dice),
        "model_dice_with_readers": plain(summary.model_dice),
        "cases": [
            {
                "case_id": scan.case_id,
                "things": len(scan.things),
                "found": int(np.isfinite(scan.matches.nodule_scores).sum()),
                "contours": scan.contours,
                "dice": None if scan.dice is None else _finite(scan.dice.mean),
            }
            for scan in scans
        ],
    }


def _by_size(scans: Sequence[EvaluatedScan], froc: Froc) -> tuple[SizeRow, ...]:
    diameters = np.array([thing.diameter_mm for scan in scans for thing in scan.things])
    scores = np.concatenate([scan.matches.nodule_scores for scan in scans])
    allowed = froc.thresholds[froc.false_positives_per_scan <= AT_FALSE_POSITIVES][-1]
    rows = []
    for low, high in pairwise(SIZES_MM):
        inside = (diameters >= low) & (diameters < high)
        if inside.any():
            rows.append(
                SizeRow(
                    low_mm=low,
                    high_mm=high,
                    things=int(inside.sum()),
                    found=float(np.isfinite(scores[inside]).mean()),
                    sensitivity=float((scores[inside] >= allowed).mean()),
                )
            )
    return tuple(rows)


def _numbers_of(labels: Array, wanted: Sequence[Instance]) -> Array:
    """Only the things to be found."""
    return np.where(np.isin(labels, [i.number for i in wanted]), labels, 0)


def _agreement(dataset: Dataset, case: Case, wanted: Sequence[Instance], ours: Array) -> tuple[float, float]:
    """Mean Dice between readers and of the model with them, over the things that two or more outlined."""
    if not any(len(thing.readers) > 1 for thing in wanted):
        return float("nan"), float("nan")
    structure = wanted[0].structure
    labels = {
        a.reader: dataset.load_instances(case, structure, a.reader)
        for a in case.annotations
        if a.structure == structure and not a.derived and a.state is State.CONTOURED
    }
    rows = []
    for thing in wanted:
        masks = {r: labels[r] == thing.number for r in thing.readers if r in labels}
        if len(masks) < 2:
            continue
        union = np.any(list(masks.values()), axis=0)
        touching = np.unique(ours[union & (ours > 0)])
        model = np.isin(ours, touching) if len(touching) else np.zeros(union.shape, bool)
        agreement = compute_reader_agreement(masks, model)
        rows.append((agreement.among_readers, agreement.with_model))
    if not rows:
        return float("nan"), float("nan")
    among, model_too = np.mean(rows, axis=0)
    return float(among), float(model_too)


def _points(points: Sequence[tuple[float, float, float]]) -> Array:
    rows: Array = np.array(points, float).reshape(-1, 3)
    return rows


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value
