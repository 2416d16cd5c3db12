"""One pass over a whole volume."""

import numpy as np
import torch
from torch import Tensor

from consilium.inference.model import Model
from consilium.inference.preprocess import Prior, prior_logits, to_channels, to_prior_channels
from consilium.types import Array, FloatArray


def predict_logits(model: Model, image: Array, prior: Prior | None = None) -> Tensor:
    """Logits (S, Z, Y, X), float32, of a prepared image (Z, Y, X) int16 in one pass."""
    windows = model.preprocessing.windows
    with torch.inference_mode():
        channels = to_channels(torch.from_numpy(image).to(model.device), windows)
        if prior is not None:
            channels = torch.cat([channels, to_prior_channels(prior, windows).to(model.device)])
        channels = channels.unsqueeze_(0)
        logits: Tensor = model.network(channels)[0].float()
        if prior is not None:
            logits = logits + prior_logits(channels, len(model.structures))
        return logits[0]


def predict_whole(model: Model, image: Array, prior: Prior | None = None) -> FloatArray:
    """Probabilities (S, Z, Y, X), float32 in [0, 1], of a prepared image (Z, Y, X) int16 in one pass."""
    with torch.inference_mode():
        return np.asarray(predict_logits(model, image, prior).sigmoid_().cpu().numpy())
