"""A cascade as one file: the weights of both networks, what they need, a card, and a digest of it all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from consilium.errors import CheckpointError
from consilium.inference.candidates import DetectorDescription
from consilium.inference.cascade import Cascade
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.model import (
    HEADER,
    ModelDescription,
    build_model,
    canonical_json,
    compute_digest,
    load_weights,
    parse_json,
    read_tensors,
    write_tensors,
)
from consilium.networks.detector import build_detector, with_bf16

CASCADE_FORMAT = "consilium-cascade"
CASCADE_VERSION = 1
CASCADE_FILE = "cascade.consilium"
"""Its name in a run's folder."""


def save_cascade(path: Path, cascade: Cascade) -> str:
    """Write both networks to one file; returns its digest."""
    tensors = {f"detector.{k}": v for k, v in cascade.detector.state_dict().items()}
    tensors |= {f"segmenter.{k}": v for k, v in cascade.segmenter.network.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = {
        "detector": cascade.description.to_json(),
        "segmenter": cascade.segmenter.description.to_json(),
        "card": dict(cascade.card),
    }
    digest = compute_digest(canonical_json(record), tensors)
    header = {
        "format": CASCADE_FORMAT,
        "version": CASCADE_VERSION,
        "description": record,
        "digest": digest,
    }
    write_tensors(path, tensors, header)
    return digest


def load_cascade(path: Path, *, device: torch.device | None = None) -> Cascade:
    """Read what `save_cascade` wrote.

    Raises:
        CheckpointError: No cascade, one of another version, or its content does not have its digest.
    """
    tensors, header = read_tensors(path)
    found = (header.get("format"), header.get("version"))
    if found != (CASCADE_FORMAT, CASCADE_VERSION):
        raise CheckpointError(
            f"{path.name}: must be of format {CASCADE_FORMAT!r} version {CASCADE_VERSION}; found "
            f"{found[0]!r} version {found[1]!r}."
        )
    record = header.get("description")
    digest = compute_digest(canonical_json(record if isinstance(record, dict) else {}), tensors)
    if not isinstance(record, dict) or digest != header.get("digest"):
        raise CheckpointError(
            f"{path.name}: the content must have the digest that the file states; it has not. Get it again."
        )
    device = device or choose_device()
    try:
        description = DetectorDescription.from_json(record["detector"])
        segmenter = ModelDescription.from_json(record["segmenter"])
        card = dict(record["card"])
    except KeyError as error:
        raise CheckpointError(
            f"{path.name}: must describe both networks and have a card; {error} is missing."
        ) from error
    detector = build_detector(with_bf16(description.network, has_fast_bf16(device)), seed=0)
    load_weights(detector, _part(tensors, "detector."))
    model = build_model(segmenter, _part(tensors, "segmenter."), device=device)
    return Cascade(
        detector=detector.to(device).eval(),
        description=description,
        segmenter=model,
        digest=digest,
        card=card,
    )


def find_cascade(path: Path) -> Path | None:
    """The cascade's file behind a path: a run's folder with one, or such a file; None for anything else."""
    file = path / CASCADE_FILE if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            header = parse_json(dict(opened.metadata() or {}).get(HEADER, "{}"), path.name)
    except (SafetensorError, OSError, CheckpointError):
        return None
    return file if header.get("format") == CASCADE_FORMAT else None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
