"""How well do planning contours follow onto a repeat CT?

``--part phantoms``: pelves of one hospital with a known change of bladder, rectum, gas, posture and set-up of
5, 10 and 15 mm, noise of their own on both days. Two networks (iunet) are trained on other patients for the
same processor time: one for contouring, one for adaptation. Compared in one run, by mean surface Dice at 2 mm
over structures and patients: ``refined`` (ours), ``propagation`` (our registration alone), ``network`` (the
contouring network alone), ``simpleitk-bspline`` and ``simpleitk-demons`` (on the same prepared images, from
the same rigid start, so that only the deformable step differs). Also the error of the found field inside the
body and inside structures, and an unchanged patient, once with the very same image, once with new noise.

``--part openkbp``: the same ways on OpenKBP patients deformed by a known smooth field, with networks trained
on others of them.
``--part real``: OpenKBP patients and, where they are unpacked, sarcoma patients and LIDC scans (a third as
many), deformed by a known smooth field of 5 to 15 mm, with noise added; registrations only, no networks.
``--part time``: one 512×512×150 pair, seconds and processor seconds.

``ours`` is the mean surface Dice (of the refined contours, or of the propagation in ``real``), ``ratio`` ours
minus the best peer (propagation and network alone are peers of ``refined``), ``limit`` 0: above it. For
``time`` ours is seconds and ``limit`` 180. ``--quick`` takes one phantom and a few steps, to show that it
runs.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import adaptation_peers
from benchmarks.equal_time_accuracy import openkbp
from benchmarks.measure import report
from consilium.adaptation.calibrate import AMOUNTS_MM, MOST_PATIENTS, calibrate_run, deform_patient
from consilium.adaptation.deformation import Deformation
from consilium.adaptation.propagate import StructureShape
from consilium.adaptation.refine import refine
from consilium.adaptation.register import Registration, register
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import read_nifti
from consilium.geometry.contours import mask_from_polygons
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.inference.contour import predict, structure_mask
from consilium.inference.model import Model, load_model
from consilium.metrics.comparison import compare_masks
from consilium.phantoms.pelvis import HOSPITALS, build_cohort
from consilium.phantoms.repeat import build_repeat, choose_change
from consilium.training.config import Budget, TrainingConfig
from consilium.training.data import load_drawn
from consilium.training.run_folder import open_run
from consilium.training.start import train_dataset
from consilium.types import FloatArray, Mask

QUESTION = "How well do planning contours follow onto a repeat CT?"
REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("CONSILIUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
TRAINING_SEED, TEST_SEED = 1, 900
Peer = Callable[[object, object, FloatArray], Deformation]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two CT with what is true of them.

    Args:
        name: Of the pair.
        planning, repeat: The images.
        planning_masks, masks: Structures of both days.
        to_planning: The true map of points of the repeat CT.
    """

    name: str
    planning: Volume
    repeat: Volume
    planning_masks: Mapping[str, Mask]
    masks: Mapping[str, Mask]
    to_planning: Callable[[FloatArray], FloatArray]


def phantom_pair(number: int, amount_mm: float) -> Pair:
    """One pelvis on both days."""
    patient = build_cohort(HOSPITALS[0], 1, seed=TEST_SEED + number)[0]
    rng = np.random.default_rng([TEST_SEED, number])
    change = choose_change(patient, amount_mm, rng=rng)
    repeat = build_repeat(patient, change, rng=rng)
    planning = {name: mask_from_polygons(p, patient.image.grid) for name, p in patient.contours.items()}
    return Pair(f"pelvis {number}, {amount_mm:g} mm", patient.image, repeat.image, planning, repeat.masks,
                change.to_planning)  # fmt: skip


def deformed_pair(name: str, image: Volume, masks: Mapping[str, Mask], amount_mm: float, seed: int) -> Pair:
    """A real case and itself, smoothly deformed: inside structures by up to ``amount_mm``."""
    pair = deform_patient(image, masks, amount_mm, np.random.default_rng([7, seed]))
    drawn = {structure: masks[structure] for structure in pair.shapes}
    return Pair(name, pair.planning, pair.repeat, drawn, pair.masks, pair.truth.to_planning)


def phantom_dataset(folder: Path, patients: int) -> Dataset:
    """Other patients of the same hospital, to train on."""
    dataset = create_dataset(folder)
    for patient in build_cohort(HOSPITALS[0], patients, seed=TRAINING_SEED):
        annotations = tuple(
            AnnotationDraft(
                structure=name,
                reader="clinical",
                mask=lambda p=polygons, g=patient.image.grid: mask_from_polygons(p, g),
            )
            for name, polygons in patient.contours.items()
        )
        dataset.add(
            CaseDraft(source_identity=patient.label, patient_identity=patient.label, image=patient.image,
                      modality="CT", annotations=annotations, importer="phantom",
                      source_sha256={"patient": patient.label})
        )  # fmt: skip
    return dataset


def openkbp_dataset(folder: Path, patients: int) -> Dataset:
    """The first OpenKBP patients, to train on."""
    dataset = openkbp(folder, patients=patients)
    if dataset is None:
        raise SystemExit("the OpenKBP patients are not here")
    return dataset


def train_both(dataset: Dataset, folder: Path, budget: Budget) -> dict[str, Model]:
    """A contouring network and one for adaptation, with the same budget."""
    models = {}
    for name, adaptation in (("network", False), ("refined", True)):
        outcome = train_dataset(
            dataset,
            folder / name,
            TrainingConfig(network="iunet", adaptation=adaptation, watch="off"),
            budget,
        )
        print(f"{name}: {outcome.state.step} steps, validation Dice {outcome.best_dice:.3f}", flush=True)
        if adaptation:
            run = open_run(folder / name)
            ids = run.split.validation[:MOST_PATIENTS]
            patients = load_drawn(dataset, ids, run.plan.structures)
            print(f"followed: {calibrate_run(run.folder, patients, len(ids))}", flush=True)
        models[name] = load_model(folder / name)
    return models


def surface_dice(pair: Pair, found: Mapping[str, Mask]) -> tuple[float, float]:
    """Mean surface Dice at 2 mm and mean Dice over structures."""
    spacing = pair.repeat.grid.spacing_zyx_mm
    figures = [
        compare_masks(pair.masks[name], mask, spacing, tolerance_mm=2.0) for name, mask in found.items()
    ]
    return statistics.mean(f.surface_dice for f in figures), statistics.mean(f.dice for f in figures)


def carried(pair: Pair, deformation: Deformation) -> dict[str, Mask]:
    """Every planning structure by a deformation."""
    shapes = shapes_of(pair)
    return {name: shape.carried(deformation, pair.repeat.grid) for name, shape in shapes.items()}


def shapes_of(pair: Pair) -> dict[str, StructureShape]:
    """Planning structures that are not empty."""
    found = {name: StructureShape.of(m, pair.planning.grid) for name, m in pair.planning_masks.items()}
    return {name: shape for name, shape in found.items() if shape is not None}


def field_errors(pair: Pair, deformation: Deformation, body: Mask) -> tuple[float, float]:
    """Median distance from the truth in mm: inside the body, inside the structures."""
    own = pair.repeat.grid
    points = deformation.grid.affine.to_points(np.argwhere(body))
    error = np.linalg.norm(deformation.to_planning(points) - pair.to_planning(points), axis=1)
    return float(np.median(error)), float(np.median(error[_inside(pair.masks, own, points)]))


def _inside(masks: Mapping[str, Mask], grid: Grid, points: FloatArray) -> Mask:
    union = np.logical_or.reduce(list(masks.values()))
    index = np.rint(grid.affine.to_indices(points)).astype(int)
    seen = ((index >= 0) & (index < np.array(grid.shape_zyx))).all(axis=1)
    found = np.zeros(len(points), dtype=np.bool_)
    found[seen] = union[tuple(index[seen].T)]
    return found


def compare(
    pair: Pair, models: Mapping[str, Model], others: Mapping[str, Peer]
) -> dict[str, tuple[float, ...]]:
    """Way -> surface Dice, Dice, field error in the body and in structures, CPU-seconds; NaN if not had."""
    nan = float("nan")
    before = time.process_time()
    own: Registration = register(pair.planning, pair.repeat)
    took = time.process_time() - before
    body = own.repeat.body
    rows = {
        "rigid": _row(pair, own.deformation.without_displacement(), body, nan),
        "propagation": _row(pair, own.deformation, body, took),
    }
    jacobian = own.deformation.jacobian[body]
    print(f"  Jacobian {jacobian.min():.2f} to {jacobian.max():.2f}", flush=True)
    for name, peer in others.items():
        before = time.process_time()
        deformation = peer(own.planning, own.repeat, own.deformation.rigid)
        rows[name] = _row(pair, deformation, body, time.process_time() - before)
    if models:
        shapes = shapes_of(pair)
        refined = refine(models["refined"], pair.repeat, pair.planning, own.deformation, shapes)
        moved = carried(pair, own.deformation)
        masks = moved | {n: refined.mask(n, moved[n], pair.repeat.grid) for n in refined.probability}
        rows["refined"] = (*surface_dice(pair, masks), nan, nan, nan)
        found = predict([models["network"]], pair.repeat)
        alone = {
            s: structure_mask(found, k, pair.repeat.grid)
            for k, s in enumerate(found.structures)
            if s in shapes
        }
        rows["network"] = (*surface_dice(pair, alone), nan, nan, nan)
        fused = refine(models["network"], pair.repeat, pair.planning, own.deformation, shapes)
        masks = {name: fused.mask(name, moved[name], pair.repeat.grid) for name in fused.probability}
        rows["fused"] = (*surface_dice(pair, masks), nan, nan, nan)
    return rows


def _row(pair: Pair, deformation: Deformation, body: Mask, took: float) -> tuple[float, ...]:
    return (*surface_dice(pair, carried(pair, deformation)), *field_errors(pair, deformation, body), took)


def peers(*, bspline: bool) -> dict[str, Peer]:
    """SimpleITK's registrations in their usual settings."""
    found: dict[str, Peer] = {"simpleitk-demons": adaptation_peers.demons}
    return found | ({"simpleitk-bspline": adaptation_peers.bspline} if bspline else {})


def real_pairs(each: int) -> Iterator[Pair]:
    """OpenKBP patients, sarcoma patients and LIDC scans, as far as they are here."""
    yield from openkbp_pairs(slice(0, each))
    yield from _dicom_pairs(max(1, each // 3))


def openkbp_pairs(chosen: slice) -> Iterator[Pair]:
    """OpenKBP patients in the order of their names."""
    for number, folder in enumerate(sorted((DATA / "openkbp").glob("pt_*"))[chosen]):
        files = sorted((folder / "segmentations").glob("*.nii.gz"))
        masks = {f.name.removesuffix(".nii.gz"): np.asarray(read_nifti(f).array > 0) for f in files}
        amount = AMOUNTS_MM[number % 3]
        image = read_nifti(folder / "ct.nii.gz")
        yield deformed_pair(f"OpenKBP {number}, {amount:g} mm", image, masks, amount, number)


def _dicom_pairs(each: int) -> Iterator[Pair]:
    from consilium.importers.sources import find_sources
    from consilium.types import no_progress

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consilium-test-data"
    kinds = [("sarcoma", sorted((cache / "sts").glob("STS_*"))[:each])]
    kinds.append(("LIDC", sorted((cache / "lidc").glob("LIDC-IDRI-*"))[:each]))
    for kind, folders in kinds:
        for number, folder in enumerate(folders):
            draft = find_sources(folder).sources[0].read(no_progress)
            masks = {a.structure: np.asarray(a.mask() > 0) for a in draft.annotations if a.mask is not None}
            amount = AMOUNTS_MM[number % 3]
            yield deformed_pair(f"{kind} {number}, {amount:g} mm", draft.image, masks, amount, number)


def run_pairs(
    pairs: Iterator[Pair], models: Mapping[str, Model], others: Mapping[str, Peer]
) -> dict[str, float]:
    """Print a table per pair; the means of surface Dice."""
    table: dict[str, list[tuple[float, ...]]] = {}
    for pair in pairs:
        print(pair.name, flush=True)
        for way, row in compare(pair, models, others).items():
            table.setdefault(way, []).append(row)
            print(f"  {way:18} {_figures(row)}", flush=True)
    means = {}
    for way, rows in table.items():
        mean = np.mean(np.array(rows), axis=0)
        spread = [r[0] for r in rows]
        means[way] = float(mean[0])
        print(f"mean {way:18} {_figures(mean)}; surface Dice {min(spread):.3f} to {max(spread):.3f}")
    return means


def _figures(row: Sequence[float]) -> str:
    return (
        f"surface Dice {row[0]:.3f}  Dice {row[1]:.3f}  field {row[2]:.2f} mm in the body, {row[3]:.2f} in "
        f"structures  {row[4]:.1f} CPU-s"
    )


def unchanged() -> None:
    """Dice of an unchanged patient: the very same image, and new noise and set-up."""
    pair = phantom_pair(0, 0)
    same = register(pair.planning, pair.planning).deformation
    twice = Pair("", pair.planning, pair.planning, pair.planning_masks, pair.planning_masks, lambda p: p)
    print(f"unchanged, the same image: Dice {surface_dice(twice, carried(twice, same))[1]:.4f}")
    noisy = register(pair.planning, pair.repeat).deformation
    scores = (
        surface_dice(pair, carried(pair, noisy)),
        surface_dice(pair, carried(pair, noisy.without_displacement())),
    )
    print(
        f"unchanged, new noise and set-up: Dice {scores[0][1]:.4f}; rigid movement alone {scores[1][1]:.4f}"
    )


def time_one() -> float:
    """Seconds for registration and one structure on a 512×512×150 pair."""
    source = next(pair for pair in _dicom_pairs(1) if pair.planning.grid.shape_zyx[1:] == (512, 512))
    ny, nx = source.planning.grid.shape_zyx[1:]
    thick = source.planning.grid
    fine = Grid((150, ny, nx), thick.affine.scaled((thick.shape_zyx[0] / 150, 1, 1)))
    images = [
        Volume(resample(v, fine, fill=-1000).array.astype(np.int16), fine)
        for v in (source.planning, source.repeat)
    ]
    mask = np.asarray(resample(Volume(next(iter(source.planning_masks.values())), thick), fine,
                               interpolation="nearest").array)  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    found = register(images[0], images[1])
    shape = StructureShape.of(mask, fine)
    assert shape is not None
    shape.carried(found.deformation, fine)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{images[0].array.shape}: {wall:.1f} s, {cpu:.1f} CPU-s; grid {found.deformation.grid.shape_zyx}")
    return wall


def main() -> None:
    """Run a part and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=("phantoms", "openkbp", "real", "time"), default="phantoms")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--patients", type=int, default=12, help="to train on")
    parser.add_argument("--no-bspline", action="store_true", help="leave out what takes minutes a pair")
    parser.add_argument("--minutes", type=float, default=4.0, help="of processor time per training; 0: none")
    options = parser.parse_args()
    if options.part == "time":
        seconds = time_one()
        report(QUESTION, "s for 512×512×150", seconds, {}, limit=180.0, ratio=None)
        return
    others = peers(bspline=not options.no_bspline)
    if options.part == "real":
        means = run_pairs(real_pairs(1 if options.quick else options.pairs), {}, others)
        ours, others = means.pop("propagation"), means
        best = max((v for k, v in means.items() if k.startswith("simpleitk")), default=float("nan"))
        report(QUESTION, "surface Dice at 2 mm", ours, others, limit=0.0, ratio=ours - best)
        return
    patients = 3 if options.quick else options.patients
    count = 1 if options.quick else options.pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models: dict[str, Model] = {}
        if options.quick or options.minutes:
            budget = Budget(steps=4) if options.quick else Budget(minutes=options.minutes, cpu_time=True)
            make = phantom_dataset if options.part == "phantoms" else openkbp_dataset
            models = train_both(make(folder / "dataset", patients), folder, budget)
        if options.part == "openkbp":
            means = run_pairs(openkbp_pairs(slice(-count, None)), models, others)
        else:
            if not options.quick:
                unchanged()
            pairs = (phantom_pair(k + 1, AMOUNTS_MM[k % 3]) for k in range(count))
            means = run_pairs(pairs, models, others)
    ours = means.pop("refined" if models else "propagation")
    best = max(value for name, value in means.items() if name not in {"rigid", "fused"})
    report(QUESTION, "surface Dice at 2 mm", ours, means, limit=0.0, ratio=ours - best)


if __name__ == "__main__":
    main()
