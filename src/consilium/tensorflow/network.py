"""A network of either kind as a ``tf.Module`` whose variables are the canonical parameters."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from consilium.errors import CheckpointError, ConfigurationError
from consilium.networks.config import NetworkConfig
from consilium.networks.parameters import list_parameters
from consilium.tensorflow.blocks import Dropout, Tensor, to_first, to_last
from consilium.tensorflow.iunet import run_iunet
from consilium.tensorflow.unet3d import run_unet3d
from consilium.types import Array


class Network(tf.Module):  # type: ignore[misc]
    """The function of `consilium.networks.build.build_network` on variables of the same names and layout.

    Args:
        config: What to build. `bf16` and `checkpointing` are torch's: the first is refused, the second has
            no effect on the values and is left out.
        parameters: Canonical name -> array, all of them; their kind of number is the network's.

    Raises:
        ConfigurationError: bfloat16 is asked for.
        CheckpointError: Parameters of another network.
    """

    def __init__(self, config: NetworkConfig, parameters: Mapping[str, Array]) -> None:
        super().__init__(name="network")
        if config.bf16:
            raise ConfigurationError(
                "network: TensorFlow networks compute in float32 or float64; found bf16=True. "
                "Set it to False."
            )
        self.config = config
        _check_parameters(config, parameters)
        self.by_name: dict[str, tf.Variable] = {
            name: tf.Variable(np.asarray(parameters[name]), name=name.replace(".", "_"))
            for name in list_parameters(config)
        }

    @property
    def dtype(self) -> tf.DType:
        """Kind of number of the parameters, the stream and the logits."""
        return next(iter(self.by_name.values())).dtype

    def __call__(self, image: Tensor, *, training: bool = False, seed: Tensor | None = None) -> list[Tensor]:
        """Logits per scale, finest first, (B, S, Z', Y', X'); only the finest outside training.

        Args:
            image: (B, C, Z, Y, X), or (B, C, Y, X) for a network of two dimensions, any sizes.
            training: With every head, and dropout where the configuration has it.
            seed: (2,) int32 of the dropout; needed in training with dropout.
        """
        config, flat = self.config, self.config.dims == 2
        dropout = None
        if training and config.dropout:
            if seed is None:
                raise ConfigurationError("network: training with dropout needs a seed; got none.")
            dropout = Dropout(config.dropout, seed)
        image = tf.cast(image[:, :, None] if flat else image, self.dtype)
        tensors = {name: tf.convert_to_tensor(value) for name, value in self.by_name.items()}
        run = run_unet3d if config.kind == "unet3d" else run_iunet
        heads = config.heads if training else 1
        found = run(config, tensors, to_last(image), heads=heads, dropout=dropout)
        logits = [to_first(one) for one in found]
        return [one[:, :, 0] if flat else one for one in logits]

    def get_parameters(self) -> dict[str, Array]:
        """A copy of every parameter by canonical name."""
        return {name: np.array(value.numpy()) for name, value in self.by_name.items()}

    def put_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Copy arrays into the network; names that are absent keep their values.

        Raises:
            CheckpointError: A name that the network does not have, or another shape.
        """
        for name, value in parameters.items():
            own = self.by_name.get(name)
            if own is None or tuple(own.shape) != tuple(value.shape):
                expected = "no such parameter" if own is None else tuple(own.shape)
                raise CheckpointError(
                    f"{name}: received parameters must fit the network; got {tuple(value.shape)}, "
                    f"expected {expected}."
                )
            own.assign(tf.cast(value, own.dtype))


def _check_parameters(config: NetworkConfig, parameters: Mapping[str, Array]) -> None:
    shapes = list_parameters(config)
    odd = sorted(shapes.keys() ^ parameters.keys())
    if odd:
        what = "is missing" if odd[0] in shapes else "is not part of the network"
        raise CheckpointError(f"network: parameters must be those of its configuration; {odd[0]} {what}.")
    for name, shape in shapes.items():
        if tuple(parameters[name].shape) != shape:
            raise CheckpointError(
                f"network: {name} must have shape {shape}; found {tuple(parameters[name].shape)}."
            )
