"""Does finding first and contouring then beat segmenting alone, on phantom chests never seen in training?

``ours`` is the cascade's CPM (mean sensitivity at 1/8 … 8 false positives per scan); ``limit`` is 0.90;
``ratio`` is ours / limit. Also printed: the detector's own CPM, both with intervals, sensitivity by size, and
whole-scan Dice (missed nodules count 0) of the cascade and of a segmentation network trained for as long on
the same cases. Training time is processor time of all threads: 40 minutes are 20 minutes of two cores.

    python -m benchmarks.detection_phantoms [--quick] [--minutes 20] [--folder KEEP] [--picture FILE.png]

With --folder everything is kept there, and a run that was interrupted (Ctrl-C) goes on.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.measure import process_peak_mib, report
from consilium.cases.case import Instance, State
from consilium.cases.dataset import Dataset, create_dataset, open_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.split import Split
from consilium.cli.console import stop_on_interrupt
from consilium.inference.cascade import Cascade, CascadeResult, contour_instances
from consilium.inference.cascade_file import CASCADE_FILE, find_cascade, load_cascade
from consilium.inference.contour import contour_volume
from consilium.inference.model import Model, load_model
from consilium.metrics.detection import (
    NoduleDice,
    ScanMatches,
    bootstrap_cpm,
    compute_froc,
    compute_nodule_dice,
)
from consilium.phantoms.chest import NODULE, ChestPhantom, make_chest
from consilium.training.cascade_evaluation import match_candidates, sure_labels
from consilium.training.cascade_run import (
    CascadeConfig,
    is_cascade_run,
    open_cascade_run,
    start_cascade_run,
)
from consilium.training.cascade_training import train_cascade
from consilium.training.config import Budget, TrainingConfig
from consilium.training.loop import train
from consilium.training.run_folder import CONFIG, open_run
from consilium.training.start import prepare_run, start_run

LIMIT = 0.90
TEST_SEED = 10_000
SIZES_MM = (4, 5, 6.5, 9, 14, 31)
SURE = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="seconds of training: shows that it runs, no figure to quote"
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="processor time of the cascade's training"
    )
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on from there")
    parser.add_argument("--picture", type=Path, help="draw some test nodules")
    parser.add_argument("--train", type=int, default=120)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument(
        "--alone", type=float, default=1.0, help="minutes of segmentation alone, as a share; 0: left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    minutes = 0.2 if arguments.quick else arguments.minutes
    share = 0.0 if arguments.quick else arguments.alone
    counts = (6, 3) if arguments.quick else (arguments.train, arguments.test)
    with tempfile.TemporaryDirectory() as temporary, stop_on_interrupt() as should_stop:
        folder = arguments.folder or Path(temporary)
        dataset = make_dataset(folder / "dataset", counts[0], arguments.seed)
        split = split_of(dataset)
        cascade = train_or_load(dataset, folder / "cascade", split, minutes, should_stop)
        if cascade is None:
            print("interrupted; run again with the same --folder")
            return
        alone = None
        if share:
            alone = train_alone(dataset, folder / "alone", split, minutes * share, should_stop)
        if share and alone is None:
            print("interrupted; run again with the same --folder")
            return
    tests = [make_chest(np.random.default_rng((arguments.seed, TEST_SEED + k))) for k in range(counts[1])]
    evaluate(cascade, alone, tests, arguments.picture)


def make_dataset(folder: Path, count: int, seed: int) -> Dataset:
    """Phantoms in the dataset format; with more nodules than the test phantoms, so that a step sees more."""
    dataset = open_dataset(folder) if folder.exists() else create_dataset(folder)
    started = time.process_time()
    for k in range(len(dataset.case_ids), count):
        rng = np.random.default_rng((seed, k))
        phantom = make_chest(rng, nodules=int(rng.integers(4, 13)))
        dataset.add(draft_of(phantom, f"chest-{seed}-{k}"))
    print(f"{len(dataset.case_ids)} phantoms; making and writing the missing ones took "
          f"{time.process_time() - started:.0f} CPU-s")  # fmt: skip
    return dataset


def split_of(dataset: Dataset) -> Split:
    """Nearly all train: the test phantoms are made apart."""
    ids = dataset.case_ids
    last = max(2, len(ids) // 20)
    counts = {NODULE: (len(ids) - last, last)}
    return Split(training=ids[:-last], validation=ids[-last:], structures=counts)


def draft_of(phantom: ChestPhantom, name: str) -> CaseDraft:
    """A phantom as an importer would hand it over."""
    contoured = bool(phantom.nodules)
    annotation = AnnotationDraft(
        structure=NODULE,
        reader="truth",
        state=State.CONTOURED if contoured else State.ABSENT,
        mask=(lambda: phantom.labels) if contoured else None,
    )
    return CaseDraft(
        source_identity=name,
        patient_identity=name,
        image=phantom.image,
        modality="CT",
        annotations=(annotation,),
        importer="phantom",
        source_sha256={},
        instances=instances_of(phantom),
    )


def instances_of(phantom: ChestPhantom) -> tuple[Instance, ...]:
    """The nodules as a case holds them."""
    return tuple(
        Instance(structure=NODULE, number=k, centre_lps_mm=n.centre_lps_mm, diameter_mm=n.diameter_mm)
        for k, n in enumerate(phantom.nodules, start=1)
    )


def train_or_load(
    dataset: Dataset, folder: Path, split: Split, minutes: float, should_stop: Callable[[], bool]
) -> Cascade | None:
    """The package's own training of a cascade with its own plan; None if it was interrupted."""
    if find_cascade(folder) is not None:
        return load_cascade(folder / CASCADE_FILE)
    budget = Budget(minutes=minutes, cpu_time=True)
    config = CascadeConfig(structure=NODULE)
    run = (
        open_cascade_run(folder)
        if is_cascade_run(folder)
        else start_cascade_run(dataset, folder, config, budget, split=split)
    )
    print(*run.reasons, sep="\n", flush=True)
    started = time.process_time()
    cascade = train_cascade(dataset, run, should_stop=should_stop)
    print(f"cascade: this sitting took {time.process_time() - started:.0f} CPU-s, of which "
          f"at most {60 * minutes:.0f} CPU-s are steps", flush=True)  # fmt: skip
    return cascade


def train_alone(
    dataset: Dataset, folder: Path, split: Split, minutes: float, should_stop: Callable[[], bool]
) -> Model | None:
    """The package's own segmentation training with its own plan, on the same cases; None if interrupted."""
    if (folder / CONFIG).exists():
        run = open_run(folder)
    else:
        config, budget = TrainingConfig(structures=(NODULE,)), Budget(minutes=minutes, cpu_time=True)
        run = start_run(dataset, folder, config, budget, split=split)
    print(f"alone: spacing {run.plan.preprocessing.spacing_zyx_mm} mm, patch {run.plan.patch_zyx}, "
          f"channels {run.plan.network.channels}", flush=True)  # fmt: skip
    parts = prepare_run(dataset, run)
    outcome = train(run, parts.training, parts.validation, should_stop=should_stop)
    print(f"alone: {outcome.state.step} steps, validation Dice {outcome.best_dice:.3f}", flush=True)
    return load_model(folder) if outcome.finished else None


def evaluate(cascade: Cascade, alone: Model | None, tests: list[ChestPhantom], picture: Path | None) -> None:
    """Figures of both ways on the test phantoms."""
    rng = np.random.default_rng(0)
    found, detected, ours, other = [], [], [], []
    seconds: list[float] = []
    results: list[CascadeResult] = []
    for phantom in tests:
        started = time.process_time()
        result = contour_instances(cascade, phantom.image, least_confidence=0.0)
        seconds.append(time.process_time() - started)
        results.append(result)
        wanted = instances_of(phantom)
        scored = [(i.candidate.centre_lps_mm, i.confidence) for i in result.instances]
        raw = [(c.centre_lps_mm, c.score) for c in result.candidates]
        found.append(match_candidates(wanted, [], scored))
        detected.append(match_candidates(wanted, [], raw))
        ours.append(compute_nodule_dice(phantom.labels, sure_labels(result, SURE)))
        if alone is not None:
            ((_, mask, _),) = contour_volume(alone, phantom.image)
            other.append(compute_nodule_dice(phantom.labels, ndimage.label(mask)[0]))
    cpm = bootstrap_cpm(found, rng)
    nodules = sum(len(p.nodules) for p in tests)
    print(f"{len(tests)} phantoms, {nodules} nodules; {np.median(seconds):.1f} CPU-s per scan")
    for name, interval in (("cascade", cpm), ("detector", bootstrap_cpm(detected, rng))):
        print(f"CPM of the {name}: {interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    for name, dice in (("cascade", ours), ("segmentation alone", other)):
        print(summary(name, dice) if dice else f"{name}: not measured")
    print_sizes(tests, found)
    print(f"peak {process_peak_mib():.0f} MiB")
    if picture is not None:
        draw(picture, tests, results)
    report("CPM of the cascade on unseen phantom chests", "CPM", cpm.estimate, {}, limit=LIMIT,
           ratio=cpm.estimate / LIMIT)  # fmt: skip


def print_sizes(tests: list[ChestPhantom], found: list[ScanMatches]) -> None:
    """Sensitivity by diameter at one and at an eighth of a false positive per scan."""
    diameters = np.array([n.diameter_mm for p in tests for n in p.nodules])
    scores = np.concatenate([m.nodule_scores for m in found])
    froc = compute_froc(found)
    for low, high in pairwise(SIZES_MM):
        inside = (diameters >= low) & (diameters < high)
        if not inside.any():
            continue
        at = [froc.thresholds[froc.false_positives_per_scan <= rate][-1] for rate in (1.0, 0.125)]
        one, eighth = (float((scores[inside] >= t).mean()) for t in at)
        print(f"{low:g} to {high:g} mm ({inside.sum()}): found {np.isfinite(scores[inside]).mean():.2f}, "
              f"at 1 false positive per scan {one:.2f}, at 1/8 {eighth:.2f}")  # fmt: skip


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
