"""A trained network as a SavedModel, for programs that know TensorFlow and not consilium."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tensorflow as tf

from consilium.errors import ConfigurationError
from consilium.inference.model import ModelDescription
from consilium.tensorflow.blocks import Tensor
from consilium.tensorflow.network import Network
from consilium.types import Array

DESCRIPTION = "consilium.json"


def save_tensorflow(folder: Path, description: ModelDescription, weights: Mapping[str, Array]) -> None:
    """Write ``image`` (B, C, Z, Y, X) float32 -> ``probabilities`` (B, S, Z, Y, X), for images of any size.

    The description lies beside it as ``consilium.json``. The rounding of an iunet's stream, which is there
    for training, is left out: probabilities differ in the fifth digit.

    Raises:
        ConfigurationError: ``folder`` exists.
    """
    if folder.exists():
        raise ConfigurationError(f"convert: {folder.name} must be new; it exists. Name another folder.")
    config = replace(description.network, bf16=False, fixed_point=False, reversible=False)
    network = Network(config, weights)
    sizes = [None] * config.dims
    shape = tf.TensorSpec([None, config.in_channels, *sizes], tf.float32, name="image")

    @tf.function(input_signature=[shape], autograph=False)  # type: ignore[untyped-decorator]
    def serve(image: Tensor) -> dict[str, Tensor]:
        return {"probabilities": tf.sigmoid(network(image)[0])}

    network.serve = serve
    tf.saved_model.save(network, str(folder), signatures={"serving_default": serve})
    text = json.dumps(description.to_json(), sort_keys=True, ensure_ascii=False, indent=1)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
