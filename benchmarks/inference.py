"""How long does contouring one volume take, in one pass and by windows?

One prepared volume goes through the same weights in several ways: our ``iunet`` and our ``unet3d`` in
one pass; both by our own windows (96³, overlap 0.5, Gaussian weights); and, where MONAI is installed, by its
``sliding_window_inference`` with the same window, overlap and weights. Where bfloat16 is fast, it
is used throughout. Weights are random: time does not depend on them.

``ours`` is CPU-seconds per megavoxel of the ``iunet`` in one pass; ``peers`` are the others. ``ratio`` is the
time of MONAI's sliding window on our ``iunet`` (of ours where MONAI is absent) divided by that of one pass;
there is no ``limit``. ``--quick`` takes a small volume.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.measure import cpu_seconds, median, report
from consilium.inference.device import has_fast_bf16
from consilium.inference.memory import predict_inference_bytes
from consilium.inference.model import Model, ModelDescription, build_model
from consilium.inference.preprocess import Preprocessing, to_channels
from consilium.inference.sliding_window import predict_windows
from consilium.inference.whole_volume import predict_whole
from consilium.networks.build import NetworkConfig, build_network, choose_resampling
from consilium.types import Array

WINDOW = (96, 96, 96)
OVERLAP = 0.5
STRUCTURES = ("A", "B", "C", "D", "E", "F")
CHANNELS = {"iunet": (32, 64, 128, 256), "unet3d": (16, 32, 64, 128)}


def make_model(kind: str) -> Model:
    """A model of the plan's usual shape with random weights."""
    preprocessing = Preprocessing(spacing_zyx_mm=(2.0, 2.0, 2.0))
    channels = CHANNELS[kind]
    squeeze = kind == "iunet"
    steps = choose_resampling((2.0, 2.0, 2.0), len(channels), first_is_stem=squeeze)
    config = NetworkConfig(
        kind=kind,
        in_channels=preprocessing.channels,
        out_channels=len(STRUCTURES),
        channels=channels,
        resampling=steps[1:] if squeeze else steps,
        stem_stride=steps[0] if squeeze else (),
        bf16=has_fast_bf16(torch.device("cpu")),
    )
    description = ModelDescription(structures=STRUCTURES, preprocessing=preprocessing, network=config)
    weights = build_network(config, seed=0).state_dict()
    return build_model(description, weights, device=torch.device("cpu"))


def monai_windows(model: Model, image: Array) -> Callable[[], Any] | None:
    """MONAI's sliding window over the same network; None where MONAI is not installed."""
    try:
        from monai.inferers.utils import sliding_window_inference
    except ImportError:
        print("MONAI is not installed and left out; see requirements-peers/equal_time_accuracy.txt")
        return None

    def work() -> Any:
        with torch.inference_mode():
            channels = to_channels(torch.from_numpy(image), model.preprocessing.windows)[None]
            logits = sliding_window_inference(
                channels, WINDOW, 1, lambda part: model.network(part)[0], overlap=OVERLAP, mode="gaussian"
            )
            return logits.sigmoid()

    return work


def main() -> None:
    """Measure every way and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    shape = (112, 112, 112) if arguments.quick else (192, 224, 224)
    repeats = 1 if arguments.quick else 3
    image = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    megavoxels = image.size / 1e6
    times: dict[str, float] = {}

    def measure(name: str, work: Callable[[], Any]) -> None:
        values = [seconds / megavoxels for seconds in cpu_seconds(work, repeats)]
        times[name] = median(values)
        print(
            f"{name}: {times[name]:.3f} CPU-s per megavoxel ({min(values):.3f} to {max(values):.3f})",
            flush=True,
        )

    for kind in ("iunet", "unet3d"):
        model = make_model(kind)
        need = predict_inference_bytes(model.description.network, shape) / 2**30
        print(f"{kind}, {' x '.join(map(str, shape))}: one pass is predicted to need {need:.2f} GiB")
        measure(f"consilium {kind}, one pass", lambda m=model: predict_whole(m, image))
        measure(
            f"consilium {kind}, windows", lambda m=model: predict_windows(m, image, WINDOW, overlap=OVERLAP)
        )
        peer = monai_windows(model, image)
        if peer is not None:
            measure(f"MONAI sliding window over consilium {kind}", peer)
    ours = times.pop("consilium iunet, one pass")
    window = times.get("MONAI sliding window over consilium iunet", times["consilium iunet, windows"])
    report(
        "How long does contouring one volume take, in one pass and by windows?",
        "CPU-seconds per megavoxel",
        ours,
        times,
        limit=None,
        ratio=window / ours,
    )


if __name__ == "__main__":
    main()
