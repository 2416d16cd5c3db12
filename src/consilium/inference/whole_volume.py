"""One pass over a whole volume."""

import numpy as np
import torch
from torch import Tensor

from consilium.inference.model import Model
from consilium.inference.preprocess import to_channels
from consilium.types import Array, FloatArray


def predict_logits(model: Model, image: Array) -> Tensor:
    """Logits (S, Z, Y, X), float32, of a prepared image (Z, Y, X) int16 in one pass."""
    with torch.inference_mode():
        channels = to_channels(
            torch.from_numpy(image).to(model.device), model.preprocessing.windows
        ).unsqueeze_(0)
        logits: Tensor = model.network(channels)[0][0]
        return logits.float()


def predict_whole(model: Model, image: Array) -> FloatArray:
    """Probabilities (S, Z, Y, X), float32 in [0, 1], of a prepared image (Z, Y, X) int16 in one pass."""
    with torch.inference_mode():
        return np.asarray(predict_logits(model, image).sigmoid_().cpu().numpy())
