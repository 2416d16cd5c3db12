"""Which network contours best after the same training time?

30 OpenKBP patients train, 10 validate; whole-volume Dice on the images' own grid, mean over six structures.
Every network gets the same loop, loss, batches, optimiser and processor time, three seeds. Time is counted in
minutes of processor time on one thread, 20 by default, which two cores give in ten: other work on the machine
then takes nothing away from anyone. The networks: our ``iunet`` (squeeze stem), our ``unet3d``, and MONAI's
DynUNet with the channels, kernels and strides of our ``unet3d``, in bfloat16 where that is fast. Each begins
with crops and goes on with whole volumes. A score is that of the best validation.

``ours`` is iunet's mean Dice over seeds, ``peers`` the others'; ``ratio`` is ours divided by the best peer's,
and ``limit`` is 1.0: at least as good. ``--quick`` takes a few steps on six patients, to show that
it runs. Results are kept in ``--out`` and not trained again, so that a long run may be interrupted, and
``--only`` trains one of the networks, so that several processes may share the work.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import report
from consilium.cases.dataset import Dataset, create_dataset, open_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.files import read_json, write_json
from consilium.cases.nifti import read_nifti
from consilium.cases.split import split_cases
from consilium.inference.device import available_memory_bytes, choose_device, has_fast_bf16
from consilium.training.config import Budget, TrainingConfig
from consilium.training.framework import TORCH_RUNS
from consilium.training.loop import output_prior, train
from consilium.training.plan import Plan
from consilium.training.planning import make_plan
from consilium.training.run_folder import create_run, open_run
from consilium.training.start import prepare_run
from consilium.training.state import start_training
from consilium.types import Mask

QUESTION = "Which network contours best after the same training time?"
REPOSITORY = Path(__file__).resolve().parent.parent
Build = Callable[[Plan, list[float], int], nn.Module | None]


class AsList(nn.Module):
    """A peer's network as the loop wants it: a list of logits, in bfloat16 where that is fast.

    Its last convolution stands under the name ``heads``, so that it learns at the heads' rate as ours do.
    """

    def __init__(self, network: nn.Module, head: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.network, self.heads, self.bf16 = network, nn.ModuleList([head]), bf16

    def forward(self, image: Tensor) -> list[Tensor]:
        autocast = torch.autocast(image.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        pads = [-size % 16 for size in image.shape[2:]]
        padded = nn.functional.pad(image, (0, pads[2], 0, pads[1], 0, pads[0]), mode="replicate")
        with autocast:
            logits = self.heads[0](self.network(padded))
        z, y, x = image.shape[2:]
        return [logits[:, :, :z, :y, :x].float()]


def build_own(plan: Plan, prior: list[float], seed: int) -> None:
    return None


def build_dynunet(plan: Plan, prior: list[float], seed: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    torch.manual_seed(seed)
    config = plan.network
    strides = [(1, 1, 1), *config.resampling]
    network = DynUNet(
        spatial_dims=3,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        kernel_size=list(config.kernels),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(config.channels),
    )
    bias = network.output_block.conv.conv.bias
    with torch.no_grad():
        bias.copy_(torch.logit(torch.tensor(prior)))
    head, network.output_block = network.output_block, nn.Identity()
    return AsList(network, head, bf16=config.bf16)


def contestants() -> dict[str, tuple[str, Build]]:
    """Name -> (kind for the plan, how to build); a peer that is not installed is left out and named."""
    found: dict[str, tuple[str, Build]] = {
        "consilium iunet": ("iunet", build_own),
        "consilium unet3d": ("unet3d", build_own),
    }
    try:
        import monai

        found[f"MONAI {monai.__version__} DynUNet"] = ("unet3d", build_dynunet)
    except ImportError:
        print("MONAI is not installed and left out; see requirements-peers/equal_time_accuracy.txt")
    return found


def openkbp(folder: Path, *, patients: int) -> Dataset | None:
    """Some OpenKBP patients; a structure without a file is unknown. None where the data is absent."""
    source = Path(os.environ.get("CONSILIUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "openkbp"
    if (folder / "dataset.json").exists():
        return open_dataset(folder)
    if not source.is_dir():
        return None
    dataset = create_dataset(folder)
    for patient in sorted(path for path in source.iterdir() if path.is_dir())[:patients]:

        def mask(path: Path) -> Mask:
            return np.asarray(read_nifti(path).array > 0)

        annotations = tuple(
            AnnotationDraft(
                structure=path.name.removesuffix(".nii.gz"), reader="clinical", mask=lambda p=path: mask(p)
            )
            for path in sorted((patient / "segmentations").glob("*.nii.gz"))
        )
        dataset.add(
            CaseDraft(
                source_identity=patient.name,
                patient_identity=patient.name,
                image=read_nifti(patient / "ct.nii.gz"),
                modality="CT",
                annotations=annotations,
                importer="openkbp",
                source_sha256={"patient": patient.name},
            )
        )
    return dataset


def score(
    dataset: Dataset, out: Path, name: str, kind: str, build: Build, *, seed: int, budget: Budget
) -> float:
    """Mean validation Dice of one training; from ``out`` where it was done before."""
    place = out / f"{''.join(c if c.isalnum() else '-' for c in name)}-seed{seed}"
    if (place / "score.json").exists():
        return float(read_json(place / "score.json")["mean"])
    config = TrainingConfig(network=kind, seed=seed, watch="off")
    split = split_cases(dataset.cases(), seed=0, validation_fraction=0.25)
    if (place / "config.json").exists():
        run = open_run(place)
    else:
        device = choose_device()
        plan = make_plan(dataset, config, memory_bytes=available_memory_bytes(device), device=device)
        plan = replace(plan, network=replace(plan.network, bf16=has_fast_bf16(device)))
        run = create_run(place, config, plan, split, budget)
    parts = prepare_run(dataset, run)
    network = build(run.plan, output_prior(parts.training, len(run.plan.structures)), seed)
    framework = replace(TORCH_RUNS, start=partial(start_training, network=network))
    outcome = train(run, parts.training, parts.validation, framework=framework)
    best = [entry for entry in run.read_log() if entry["step"] == outcome.best_step]
    record = {"mean": outcome.best_dice, "steps": outcome.state.step, "validation": best[-1]["validation"]}
    write_json(place / "score.json", record)
    found = {k: round(v, 3) for k, v in best[-1]["validation"]["structures"].items() if v is not None}
    print(
        f"{name}, seed {seed}: {outcome.best_dice:.4f} after {outcome.state.step} steps {found}", flush=True
    )
    return outcome.best_dice


def main() -> None:
    """Train everybody, seed by seed, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=20.0, help="of processor time, per training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="train only the networks whose name holds this")
    parser.add_argument("--out", type=Path, help="where to keep the runs; a temporary folder by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        dataset = openkbp(out / "dataset", patients=6 if arguments.quick else 40)
        if dataset is None:
            print("The OpenKBP patients are absent: nothing to train on.")
            return
        budget = Budget(steps=3) if arguments.quick else Budget(minutes=arguments.minutes, cpu_time=True)
        chosen = {name: how for name, how in contestants().items() if arguments.only in name}
        seeds = range(1 if arguments.quick else arguments.seeds)
        scores: dict[str, list[float]] = {}
        for seed in seeds:
            for name, (kind, build) in chosen.items():
                scores.setdefault(name, []).append(
                    score(dataset, out, name, kind, build, seed=seed, budget=budget)
                )
    means = {name: statistics.mean(values) for name, values in scores.items()}
    for name, values in scores.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name}: {means[name]:.4f}{spread} over {len(values)} seeds")
    if arguments.only:
        return
    ours = means.pop("consilium iunet")
    best = max(means.values(), default=0.0)
    report(QUESTION, "mean Dice", ours, means, limit=1.0, ratio=ours / best if best else None)


if __name__ == "__main__":
    main()
