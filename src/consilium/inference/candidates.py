"""A detector applied to an image: candidates with place, diameter and score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.errors import CheckpointError, ConfigurationError
from consilium.geometry.volume import Grid, Volume
from consilium.inference.preprocess import Preprocessing, prepare_image, to_channels
from consilium.networks.detector import STRIDE, Detector, DetectorConfig
from consilium.types import Array, Triple

MAX_CANDIDATES = 200
MAX_LOG_SIZE = 6.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing that may be there.

    Args:
        centre_lps_mm: (x, y, z).
        diameter_mm: > 0.
        score: In [0, 1].
    """

    centre_lps_mm: Triple
    diameter_mm: float
    score: float


@dataclass(frozen=True, kw_only=True)
class DetectorDescription:
    """Everything about a detector that is not a weight.

    Args:
        structure: What it finds, e.g. ``"Nodule"``.
        preprocessing: From image to network.
        network: Its shape.

    Raises:
        ConfigurationError: Another number of channels than windows.
    """

    structure: str
    preprocessing: Preprocessing
    network: DetectorConfig

    def __post_init__(self) -> None:
        if self.network.in_channels != self.preprocessing.channels:
            raise ConfigurationError(
                f"detector: must take one channel per window; got {self.network.in_channels} for "
                f"{self.preprocessing.channels}."
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        return {
            "structure": self.structure,
            "preprocessing": self.preprocessing.to_json(),
            "network": self.network.to_dict(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "DetectorDescription":
        """The inverse of `to_json`.

        Raises:
            CheckpointError: A field is missing or cannot be.
        """
        try:
            return cls(
                structure=str(record["structure"]),
                preprocessing=Preprocessing.from_json(record["preprocessing"]),
                network=DetectorConfig.from_dict(record["network"]),
            )
        except (KeyError, TypeError, ConfigurationError) as error:
            raise CheckpointError(f"detector: must hold one that can be built; {error}") from error


def find_candidates(
    detector: Detector,
    description: DetectorDescription,
    volume: Volume,
    *,
    least_score: float = 0.01,
    device: torch.device | None = None,
) -> list[Candidate]:
    """Candidates in a whole image, in one pass, the surest first; none is a legal answer.

    Args:
        detector: In evaluation mode, on ``device``.
        description: Its description.
        volume: In Hounsfield units for CT, any orientation and spacing.
        least_score: Candidates below it are left out.
        device: Where the detector is; default the CPU.
    """
    prepared = prepare_image(volume, description.preprocessing)
    with torch.inference_mode():
        image = torch.from_numpy(prepared.array).to(device or torch.device("cpu"))
        maps = detector(to_channels(image, description.preprocessing.windows).unsqueeze_(0))[0].cpu()
    return decode_maps(maps, prepared.grid, least_score=least_score)


def decode_maps(maps: Tensor, grid: Grid, *, least_score: float = 0.01) -> list[Candidate]:
    """Local maxima of the score map as candidates, without near duplicates.

    Args:
        maps: (5, Z, Y, X) from the detector.
        grid: Of the image it saw.
        least_score: In [0, 1].
    """
    score = maps[0].sigmoid()
    highest = functional.max_pool3d(score[None, None], 3, stride=1, padding=1)[0, 0]
    peaks = torch.where((score == highest) & (score >= least_score), score, torch.zeros(()))
    values, places = peaks.flatten().topk(min(MAX_CANDIDATES, peaks.numel()))
    kept = places[values > 0]
    index = np.stack(np.unravel_index(kept.numpy(), tuple(score.shape)), axis=-1)
    fields = maps.flatten(1)[:, kept].double().numpy()
    centres = output_to_image(index + fields[1:4].T)
    points = grid.affine.to_points(centres)
    inside: Array = np.asarray(((centres > -1) & (centres < np.asarray(grid.shape_zyx))).all(axis=1))
    sizes = np.exp(np.clip(fields[4], 0.0, MAX_LOG_SIZE))
    found = [
        Candidate(centre_lps_mm=(float(x), float(y), float(z)), diameter_mm=float(size), score=float(value))
        for (x, y, z), size, value, ok in zip(points, sizes, values[values > 0], inside, strict=True)
        if ok
    ]
    return suppress_neighbours(found)


def suppress_neighbours(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The surest first; a candidate within the radius of a surer one (the larger of both) is left out."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        point = np.array(candidate.centre_lps_mm)
        free = all(
            np.linalg.norm(point - other.centre_lps_mm) >= max(candidate.diameter_mm, other.diameter_mm) / 2
            for other in kept
        )
        if free:
            kept.append(candidate)
    return kept


def image_to_output(index_zyx: Array) -> Array:
    """Fractional indices on the detector's output grid of fractional indices in the image."""
    return (np.asarray(index_zyx, np.float64) + 0.5) / STRIDE - 0.5


def output_to_image(index_zyx: Array) -> Array:
    """The inverse of `image_to_output`."""
    return (np.asarray(index_zyx, np.float64) + 0.5) * STRIDE - 0.5
