"""The training loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from consilium.errors import RunError
from consilium.inference.doubt import CARD_ENTRY
from consilium.inference.model import BEST, save_model
from consilium.training.batch import BatchRecipe, make_batch
from consilium.training.checkpoint import LAST, load_checkpoint, save_checkpoint
from consilium.training.config import TrainingConfig
from consilium.training.data import PreparedCase
from consilium.training.framework import TORCH_RUNS, TrainingFramework
from consilium.training.plan import CROP_SHARE, Plan
from consilium.training.run_folder import Run
from consilium.training.state import rate_at, take_recent
from consilium.training.validation import DiceScores, compute_dice
from consilium.types import Progress, no_progress

VALIDATION_SHARE = 0.12
"""Validation takes about this share of the time where minutes decide."""

VALIDATIONS = 25
"""Number of validations where steps or epochs decide."""

SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended.

    Attributes:
        state: As it was after the last step: a `TrainingState`, or the framework's own.
        finished: False if it was interrupted.
        best_dice: Of the kept weights: mean over structures of mean validation Dice.
        best_step: Where they were reached.
    """

    state: Any
    finished: bool
    best_dice: float
    best_step: int


def train(
    run: Run,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    *,
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
    on_validation: Callable[[dict[str, Any]], None] = lambda entry: None,
    framework: TrainingFramework = TORCH_RUNS,
) -> Outcome:
    """Train until the budget is spent; go on from the last checkpoint where there is one.

    With a budget in steps or epochs the final weights do not depend on how often the training was
    interrupted, by whatever means; with one in minutes they depend on the machine's speed.

    Args:
        run: From `create_run` or `open_run`.
        training: Prepared cases of the split's training part.
        validation: Likewise.
        progress: Told after each step.
        should_stop: Asked after each step; True saves the state and ends.
        on_validation: Gets each log entry of a validation after it was written.
        framework: That trains, with its workers; a run may go on in another one.

    Raises:
        RunError: No training case, a loss that is no number, or a worker that is gone.
    """
    workers, pack = framework.workers, framework.pack
    state = _start_or_resume(run, training, framework)
    recipe = recipe_of(run, training)
    per_epoch = steps_per_epoch(len(training), recipe.batch * workers.count)
    now = time.process_time if run.budget.cpu_time else time.monotonic
    clock = _Clock(state.elapsed_s, now)
    schedule = _Schedule(run, per_epoch)
    current_model = framework.follow(state, run.plan)
    while True:
        state.elapsed_s = clock.elapsed_s()
        share = run.budget.share(step=state.step, steps_per_epoch=per_epoch, elapsed_s=state.elapsed_s)
        done = share >= 1.0 or state.watch.stopped
        if workers.leads and schedule.is_due(state, done=done):
            started = now()
            scores = compute_dice(current_model(), validation, progress=progress)
            entry = _conclude_validation(run, state, scores, per_epoch, framework)
            state.elapsed_s = clock.elapsed_s()
            schedule.validated(state, took_s=now() - started)
            save_checkpoint(run.folder / LAST, state, fingerprint=run.fingerprint, pack=pack)
            on_validation(entry)
            done = done or state.watch.stopped
        asked = not done and should_stop()
        ended, interrupted, share, factor = workers.agree([done, asked, share, state.watch.rate_factor])
        done = bool(ended)
        if workers.leads and (done or interrupted or clock.is_save_due(SAVE_EVERY_S)):
            save_checkpoint(run.folder / LAST, state, fingerprint=run.fingerprint, pack=pack)
        if done or interrupted:
            return Outcome(state=state, finished=done, best_dice=state.best_dice, best_step=state.best_step)
        now_recipe = recipe_at(recipe, run.plan, share)
        batch = make_batch(now_recipe, training, state.step, part=workers.rank, parts=workers.count)
        rate = rate_at(share, run.config) * factor
        workers.together(partial(framework.take_step, state, batch, run.config, rate=rate))
        _tell(progress, run, state, clock.elapsed_s(), per_epoch)


def recipe_of(run: Run, training: Sequence[PreparedCase] = ()) -> BatchRecipe:
    """How the batches of a run are made."""
    return build_recipe(run.plan, run.config, training)


def build_recipe(plan: Plan, config: TrainingConfig, training: Sequence[PreparedCase] = ()) -> BatchRecipe:
    """How batches are made; patches look for structures that few training cases have."""
    present = [sum(case.voxels[s] > 0 for case in training) for s in range(len(plan.structures))]
    return BatchRecipe(
        structures=len(plan.structures),
        windows=plan.preprocessing.windows,
        batch=plan.batch,
        patch_zyx=plan.patch_zyx,
        mirror=plan.mirror,
        augmentation=config.augmentation,
        seed=config.seed,
        adaptation=plan.takes_prior,
        focus=tuple(1.0 / max(1, int(count)) for count in present),
    )


def recipe_at(recipe: BatchRecipe, plan: Plan, share: float) -> BatchRecipe:
    """The recipe at a share of the budget: crops first, where the plan has some."""
    cropped = plan.crop_zyx is not None and share < CROP_SHARE
    return replace(recipe, patch_zyx=plan.crop_zyx) if cropped else recipe


def steps_per_epoch(cases: int, batch: int) -> int:
    """Steps until every case was seen once."""
    return max(1, round(cases / batch))


def output_prior(cases: Sequence[PreparedCase], structures: int) -> list[float]:
    """Per structure the share of voxels inside it, over the cases where it is known; 1e-4 where none is."""
    prior = []
    for s in range(structures):
        known = [case for case in cases if case.known[s]]
        inside = sum(int(case.voxels[s]) for case in known)
        prior.append(inside / sum(case.grid.voxels for case in known) if inside else 1e-4)
    return prior


def _start_or_resume(run: Run, training: Sequence[PreparedCase], framework: TrainingFramework) -> Any:
    if not training:
        raise RunError("training: needs at least one training case; found none. Import more patients.")
    prior = output_prior(training, len(run.plan.structures))
    state = framework.start(run.plan, run.config, prior)
    if (run.folder / LAST).exists():
        load_checkpoint(run.folder / LAST, state, fingerprint=run.fingerprint, unpack=framework.unpack)
    if framework.workers.leads:
        run.cut_log(state.step)
    framework.share(state, framework.workers)
    return state


def _conclude_validation(
    run: Run, state: Any, scores: DiceScores, per_epoch: int, framework: TrainingFramework
) -> dict[str, Any]:
    """Watch for over-fitting, keep the best weights, write the log entry."""
    training_dice, loss = take_recent(state)
    found = [value for value in training_dice if value == value]
    mean_training = sum(found) / len(found) if found else float("nan")
    overfitting = state.watch.observe(state.step, mean_training, scores.mean)
    # Without one validated structure every later state counts as better: the last is kept.
    better = scores.mean > state.best_dice or (scores.mean != scores.mean and state.best_dice < 0)
    if better:
        state.best_dice = scores.mean if scores.mean == scores.mean else state.best_dice
        state.best_step = state.step
        calibration = scores.calibrate()
        card = {} if calibration is None else {CARD_ENTRY: calibration.to_json()}
        save_model(run.folder / BEST, run.plan.describe_model(card), framework.weights_to_keep(state))
    entry = {
        "step": state.step,
        "epoch": state.step / per_epoch,
        "elapsed_s": round(state.elapsed_s, 3),
        "loss": loss if loss == loss else None,
        "rate_factor": state.watch.rate_factor,
        "training_dice": {
            name: value if value == value else None
            for name, value in zip(run.plan.structures, training_dice, strict=True)
        },
        "training_mean": mean_training if mean_training == mean_training else None,
        "validation": scores.to_json(),
        "best": better,
        "overfitting": overfitting,
        "scale_weights": list(state.loss.weights),
    }
    run.write_log(entry)
    return entry


def _tell(progress: Progress, run: Run, state: Any, elapsed_s: float, per_epoch: int) -> None:
    if run.budget.minutes is not None:
        total = round(60 * run.budget.minutes)
        progress("training (seconds)", min(round(elapsed_s), total), total)
    else:
        progress("training (steps)", state.step, run.budget.last_step(per_epoch))


class _Clock:
    """Time spent on a run over all its sittings."""

    def __init__(self, before_s: float, now: Callable[[], float]) -> None:
        self._before_s, self._now = before_s, now
        self._started, self._saved = now(), time.monotonic()

    def elapsed_s(self) -> float:
        return self._before_s + self._now() - self._started

    def is_save_due(self, every_s: float) -> bool:
        if time.monotonic() - self._saved < every_s:
            return False
        self._saved = time.monotonic()
        return True


class _Schedule:
    """When to validate: at fixed steps where steps decide, else a fixed share of the time."""

    def __init__(self, run: Run, per_epoch: int) -> None:
        total = run.budget.last_step(per_epoch)
        epochs = max(1, round(total / per_epoch / VALIDATIONS))
        self._every = min(max(1, total), epochs * per_epoch) if total else 0
        entries = run.read_log()
        self._validated_at = int(entries[-1]["step"]) if entries else 0
        self._next_s = 0.0
        self._per_epoch = per_epoch

    def is_due(self, state: Any, *, done: bool) -> bool:
        if state.step == self._validated_at:
            return False
        if done:
            return True
        step = int(state.step)
        if self._every:
            return step % self._every == 0
        return bool(state.elapsed_s >= self._next_s) and step - self._validated_at >= min(self._per_epoch, 20)

    def validated(self, state: Any, *, took_s: float) -> None:
        self._validated_at = state.step
        self._next_s = state.elapsed_s + took_s * (1 / VALIDATION_SHARE - 1)
