"""How well does a model contour real patients after 20 minutes of training on this machine?

30 OpenKBP patients train, 10 validate. Full-volume Dice per structure on the images' own grid, with the
number of patients behind each, by `consilium evaluate`'s own code; and how far the score that training
displayed lies from it. ``ours`` is the mean Dice over structures, ``peers`` is empty
(``equal_time_accuracy.py`` has them), ``ratio`` is the distance of the displayed score, ``limit`` 0.005.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from consilium.inference.model import load_model
from consilium.training.config import Budget, TrainingConfig
from consilium.training.evaluation import StructureSummary, evaluate_cases, mean_dice, summarise
from consilium.training.loop import train
from consilium.training.start import prepare_run, split_labelled, start_run
from equal_time_accuracy import openkbp


def show(entry: dict[str, Any]) -> None:
    """One line per validation."""
    mean = entry["validation"]["mean"]
    print(f"{entry['elapsed_s']:5.0f} s  {entry['step']:5d} steps  {mean:.3f}", flush=True)


def describe(summary: StructureSummary) -> str:
    """One line per structure."""
    dice, surface, hd95 = (summary.intervals[key] for key in ("dice", "surface_dice", "hd95_mm"))
    return (
        f"{summary.structure:14} Dice {dice.estimate:.3f} ({dice.low:.3f} to {dice.high:.3f}), "
        f"surface Dice {surface.estimate:.3f}, HD95 {hd95.estimate:.1f} mm, {summary.cases} patients"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six patients, half a minute")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--network", default="iunet")
    options = parser.parse_args()
    minutes = 0.4 if options.quick else options.minutes
    with tempfile.TemporaryDirectory() as name:
        dataset = openkbp(Path(name) / "dataset", patients=6 if options.quick else 40)
        if dataset is None:
            raise SystemExit("the OpenKBP patients are not here")
        config = TrainingConfig(network=options.network)
        split = split_labelled(dataset, config, validation_fraction=0.25)
        run = start_run(dataset, Path(name) / "run", config, Budget(minutes=minutes), split=split)
        for reason in run.plan.reasons:
            print(reason)
        parts = prepare_run(dataset, run)
        outcome = train(
            run,
            parts.training,
            parts.validation,
            on_validation=show,
        )
        model = load_model(run.folder)
        rows = [r for _, found in evaluate_cases(model, dataset, split.validation) for r in found]
        summaries = summarise(rows, model.structures)
        print(f"{len(split.training)} train, {len(split.validation)} validate; {outcome.state.step} steps")
        for summary in summaries:
            print(describe(summary))
        ours, shown = mean_dice(summaries), outcome.best_dice
        print(f"mean Dice {ours:.4f}; training displayed {shown:.4f}")
    question = f"How well does {options.network} contour after {minutes:g} minutes?"
    report(question, "Dice", ours, {}, limit=0.005, ratio=abs(ours - shown))


if __name__ == "__main__":
    main()
