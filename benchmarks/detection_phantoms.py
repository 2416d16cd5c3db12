"""Does finding first and contouring then beat segmenting alone, on phantom chests never seen in training?

``ours`` is the cascade's CPM (mean sensitivity at 1/8 … 8 false positives per scan); ``limit`` is 0.90;
``ratio`` is ours / limit. Also printed: the detector's own CPM with its interval, and whole-scan Dice (missed
nodules count 0) of the cascade and of a segmentation network trained for as long on the same cases.

    python -m benchmarks.detection_phantoms [--quick] [--minutes 14] [--folder KEEP] [--picture FILE.png]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from benchmarks.measure import process_peak_mib, report
from consilium.cases.case import Instance, State
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.split import Split
from consilium.inference.candidates import find_candidates
from consilium.inference.cascade import Cascade, CascadeResult, contour_instances, save_cascade
from consilium.inference.contour import contour_volume
from consilium.inference.model import Model, load_model
from consilium.inference.preprocess import Preprocessing
from consilium.metrics.detection import (
    NoduleDice,
    ScanFindings,
    ScanMatches,
    bootstrap_cpm,
    compute_nodule_dice,
    match_scan,
)
from consilium.phantoms.chest import NODULE, ChestPhantom, make_chest
from consilium.training.candidate_patches import PatchConfig, train_segmenter
from consilium.training.config import Budget, TrainingConfig
from consilium.training.detection import (
    LUNG_WINDOW,
    DetectionCase,
    DetectionConfig,
    load_detection_cases,
    train_detector,
)
from consilium.training.loop import train
from consilium.training.start import prepare_run, start_run

SPACING = (2.0, 1.75, 1.75)
LIMIT = 0.90
FALSE_PER_CASE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few phantoms, seconds of training")
    parser.add_argument("--minutes", type=float, default=14.0, help="training of all three networks together")
    parser.add_argument("--folder", type=Path, help="keep the cascade's file here")
    parser.add_argument("--picture", type=Path, help="draw some test nodules")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.5, help="of the minutes that the cascade gets")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    minutes = 0.5 if arguments.quick else arguments.minutes
    counts = (8, 4) if arguments.quick else (arguments.train, arguments.test)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        dataset = make_dataset(Path(folder) / "dataset", counts[0], arguments.seed)
        print(f"{counts[0]} phantoms made and written in {time.monotonic() - started:.0f} s")
        cascade = train_cascade(dataset, minutes * arguments.share, arguments.seed)
        if arguments.folder is not None:
            save_cascade(arguments.folder / "cascade.consilium", cascade)
        alone = train_alone(dataset, Path(folder) / "run", minutes * (1 - arguments.share))
    tests = [make_chest(np.random.default_rng((arguments.seed, 10_000 + k))) for k in range(counts[1])]
    evaluate(cascade, alone, tests, arguments.picture)


def make_dataset(folder: Path, count: int, seed: int) -> Dataset:
    """Phantoms in the dataset format; with more nodules than the test phantoms, so that a step sees more."""
    dataset = create_dataset(folder)
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        phantom = make_chest(rng, nodules=int(rng.integers(4, 13)))
        dataset.add(draft_of(phantom, f"chest-{seed}-{k}"))
    return dataset


def draft_of(phantom: ChestPhantom, name: str) -> CaseDraft:
    """A phantom as an importer would hand it over."""
    contoured = bool(phantom.nodules)
    annotation = AnnotationDraft(
        structure=NODULE,
        reader="truth",
        state=State.CONTOURED if contoured else State.ABSENT,
        mask=(lambda: phantom.labels) if contoured else None,
    )
    instances = tuple(
        Instance(structure=NODULE, number=k, centre_lps_mm=n.centre_lps_mm, diameter_mm=n.diameter_mm)
        for k, n in enumerate(phantom.nodules, start=1)
    )
    return CaseDraft(
        source_identity=name,
        patient_identity=name,
        image=phantom.image,
        modality="CT",
        annotations=(annotation,),
        importer="phantom",
        source_sha256={},
        instances=instances,
    )


def train_cascade(dataset: Dataset, minutes: float, seed: int) -> Cascade:
    """Detector in three quarters of the time, then the contours, its false candidates among them."""
    preprocessing = Preprocessing(spacing_zyx_mm=SPACING, windows=LUNG_WINDOW)
    config = DetectionConfig(
        structure=NODULE, preprocessing=preprocessing, steps=100_000, minutes=minutes * 0.75, seed=seed,
        crop_zyx=(48, 64, 64), batch=4, rate=3e-3,
    )  # fmt: skip
    cases = load_detection_cases(dataset, dataset.case_ids, config)
    detector, losses = train_detector(cases, config)
    print(f"detector: {len(losses)} steps, loss {np.mean(losses[:10]):.2f} to {np.mean(losses[-50:]):.3f}")
    false = [false_candidates(dataset, case, detector, config) for case in cases]
    patches = PatchConfig(
        structure=NODULE, preprocessing=preprocessing, steps=100_000, minutes=minutes * 0.25, seed=seed
    )
    segmenter, losses = train_segmenter(cases, false, patches)
    print(f"contours: {len(losses)} steps, loss {np.mean(losses[:10]):.2f} to {np.mean(losses[-50:]):.3f}, "
          f"{sum(map(len, false))} false candidates")  # fmt: skip
    return Cascade(detector=detector, description=config.describe(), segmenter=segmenter)


def false_candidates(
    dataset: Dataset, case: DetectionCase, detector: torch.nn.Module, config: DetectionConfig
) -> np.ndarray:
    """(K, 3) indices of the surest candidates that lie in no nodule of a training case."""
    volume = dataset.load_image(dataset.case(case.case_id))
    found = find_candidates(detector, config.describe(), volume, least_score=0.02)
    index = case.grid.affine.to_indices(np.array([c.centre_lps_mm for c in found]).reshape(-1, 3))
    if len(case.centres_zyx) and len(index):
        away = (index[:, None] - case.centres_zyx[None]) * SPACING
        index = index[(np.linalg.norm(away, axis=-1) > case.diameters_mm / 2 + 2).all(axis=1)]
    return index[:FALSE_PER_CASE]


def train_alone(dataset: Dataset, folder: Path, minutes: float) -> Model:
    """The package's own segmentation training, with its own plan, on the same cases."""
    config = TrainingConfig(structures=(NODULE,))
    ids = dataset.case_ids
    last = max(2, len(ids) // 10)
    split = Split(training=ids[:-last], validation=ids[-last:], structures={NODULE: (len(ids) - last, last)})
    run = start_run(dataset, folder, config, Budget(minutes=minutes), split=split)
    print(f"alone: spacing {run.plan.preprocessing.spacing_zyx_mm} mm, patch {run.plan.patch_zyx}, "
          f"channels {run.plan.network.channels}")  # fmt: skip
    parts = prepare_run(dataset, run)
    outcome = train(run, parts.training, parts.validation)
    print(f"alone: {outcome.state.step} steps, validation Dice {outcome.best_dice:.3f}")
    return load_model(folder)


def evaluate(cascade: Cascade, alone: Model, tests: list[ChestPhantom], picture: Path | None) -> None:
    """Figures of both ways on the test phantoms."""
    rng = np.random.default_rng(0)
    found, detected, ours, other = [], [], [], []
    seconds: list[float] = []
    results: list[CascadeResult] = []
    for phantom in tests:
        started = time.monotonic()
        result = contour_instances(cascade, phantom.image, least_confidence=0.0)
        seconds.append(time.monotonic() - started)
        results.append(result)
        found.append(match(phantom, [(i.candidate.centre_lps_mm, i.confidence) for i in result.instances]))
        raw = find_candidates(cascade.detector, cascade.description, phantom.image)
        detected.append(match(phantom, [(c.centre_lps_mm, c.score) for c in raw]))
        sure = np.isin(result.labels, [i.number for i in result.instances if i.confidence >= 0.3])
        ours.append(compute_nodule_dice(phantom.labels, np.where(sure, result.labels, 0)))
        ((_, mask, _),) = contour_volume(alone, phantom.image)
        other.append(compute_nodule_dice(phantom.labels, ndimage.label(mask)[0]))
    cpm = bootstrap_cpm(found, rng)
    detector_cpm = bootstrap_cpm(detected, rng)
    nodules = sum(len(p.nodules) for p in tests)
    print(f"{len(tests)} phantoms, {nodules} nodules; {np.median(seconds):.1f} s per scan")
    for name, interval in (("cascade", cpm), ("detector", detector_cpm)):
        print(f"CPM of the {name}: {interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    for name, dice in (("cascade", ours), ("segmentation alone", other)):
        print(summary(name, dice))
    missed = [
        round(n.diameter_mm, 1)
        for p, m in zip(tests, found, strict=True)
        for n, s in zip(p.nodules, m.nodule_scores, strict=True)
        if not np.isfinite(s)
    ]
    print(f"missed by the cascade at any confidence, mm: {sorted(missed)}; peak {process_peak_mib():.0f} MiB")
    if picture is not None:
        draw(picture, tests, results)
    report("CPM of the cascade on unseen phantom chests", "CPM", cpm.estimate, {}, limit=LIMIT,
           ratio=cpm.estimate / LIMIT)  # fmt: skip


def match(phantom: ChestPhantom, candidates: list[tuple[tuple[float, float, float], float]]) -> ScanMatches:
    """One scan by LUNA16's rules."""
    return match_scan(
        ScanFindings(
            nodule_points_lps_mm=np.array([n.centre_lps_mm for n in phantom.nodules]).reshape(-1, 3),
            nodule_diameters_mm=np.array([n.diameter_mm for n in phantom.nodules]),
            candidate_points_lps_mm=np.array([c for c, _ in candidates]).reshape(-1, 3),
            candidate_scores=np.array([s for _, s in candidates]),
            excluded_points_lps_mm=np.zeros((0, 3)),
            excluded_diameters_mm=np.zeros(0),
        )
    )


def summary(name: str, dice: list[NoduleDice]) -> str:
    """Whole-scan figures over all phantoms."""
    per_nodule = [d for one in dice for d in one.per_nodule]
    unions = [one.union for one in dice if one.per_nodule]
    false = float(np.mean([one.false_positives for one in dice]))
    return (
        f"{name}: Dice per nodule {np.mean(per_nodule):.3f} (missed ones 0), per scan {np.mean(unions):.3f}, "
        f"sensitivity {np.mean([f for one in dice for f in one.found]):.3f}, "
        f"{false:.2f} false contours per scan"
    )


def draw(path: Path, tests: list[ChestPhantom], results: list[CascadeResult]) -> None:
    """One slice through the first nodule of twelve phantoms: truth red, cascade yellow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 4, figsize=(14, 9))
    chosen = [(p, r) for p, r in zip(tests, results, strict=True) if p.nodules]
    for axis, (phantom, result) in zip(axes.ravel(), chosen, strict=False):
        z = round(float(phantom.image.grid.affine.to_indices(phantom.nodules[0].centre_lps_mm)[0]))
        axis.imshow(phantom.image.array[z], cmap="gray", vmin=-1000, vmax=300)
        for labels, colour in ((phantom.labels, "red"), (result.labels, "yellow")):
            if labels[z].any():
                axis.contour(labels[z] > 0, [0.5], colors=colour, linewidths=0.8)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    main()
