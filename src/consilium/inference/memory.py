"""What a pass takes in all: the live tensors that `networks.memory` predicts, weights and optimiser."""

from functools import lru_cache

from consilium.networks.config import NetworkConfig
from consilium.networks.memory import count_parameters, predict_peak_bytes
from consilium.types import Shape

FLOAT = 4
TRAINING_COPIES = 4
"""Of the weights: themselves, their moving average, and AdamW's two moments. Gradients are live tensors."""


def predict_training_bytes(network: NetworkConfig, shape_zyx: Shape, batch: int = 1) -> int:
    """Peak bytes of a training step on ``batch`` volumes of this shape, beyond the process itself."""
    live = predict_peak_bytes(network, shape_zyx, training=True, batch=batch)
    return live + TRAINING_COPIES * FLOAT * _parameters(network)


def predict_inference_bytes(network: NetworkConfig, shape_zyx: Shape) -> int:
    """Peak bytes of one pass without gradients over a volume of this shape, beyond the process itself."""
    return predict_peak_bytes(network, shape_zyx, training=False) + FLOAT * _parameters(network)


@lru_cache(maxsize=64)
def _parameters(network: NetworkConfig) -> int:
    return count_parameters(network)
