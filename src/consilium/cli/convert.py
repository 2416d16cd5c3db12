"""``consilium convert``: a trained model for another framework or runtime."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from consilium.cases.files import write_atomically
from consilium.cli.console import console
from consilium.errors import ConfigurationError
from consilium.inference.model import BEST, MODEL_SUFFIX, build_model, read_model_file, save_model
from consilium.inference.onnx_graph import build_onnx
from consilium.inference.openvino import save_openvino

SAVED_MODEL, OPENVINO = ".savedmodel", ".xml"
KINDS = (".onnx", OPENVINO, SAVED_MODEL, MODEL_SUFFIX)


def convert(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or a model file.", exists=True)],
    out: Annotated[
        Path,
        typer.Argument(
            help=f"What to write; its ending says what: .onnx, {OPENVINO} (OpenVINO, weights in a .bin "
            f"beside it), {SAVED_MODEL} (a TensorFlow folder), or {MODEL_SUFFIX} (consilium's own file, for "
            "torch and TensorFlow alike)."
        ),
    ],
) -> None:
    """Write a trained model for another framework or runtime.

    A model file of consilium holds arrays by framework-neutral names: trained in either framework, it runs in
    the other as it is. This verb is for programs that are not consilium.
    """
    if out.suffix not in KINDS:
        raise ConfigurationError(f"convert: the ending must be one of {', '.join(KINDS)}; got {out.name!r}.")
    description, weights, digest = read_model_file(model / BEST if model.is_dir() else model)
    if description.takes_prior and out.suffix != MODEL_SUFFIX:
        raise ConfigurationError(
            "convert: the model must contour by itself; this one's output is added to the contours of an "
            f"earlier day, which no file but {MODEL_SUFFIX} says. Use it with consilium adapt --model."
        )
    arrays = {name: value.numpy() for name, value in weights.items()}
    if out.suffix == ".onnx":
        write_atomically(out, build_onnx(description, arrays))
    elif out.suffix == OPENVINO:
        save_openvino(build_model(description, weights, device=torch.device("cpu"), digest=digest), out)
    elif out.suffix == MODEL_SUFFIX:
        save_model(out, description, weights)
    else:
        from consilium.tensorflow.installed import check_installed

        check_installed("convert")
        from consilium.tensorflow.saved_model import save_tensorflow

        save_tensorflow(out, description, arrays)
    console.print(f"{out}: from the model with digest {digest}", markup=False)
