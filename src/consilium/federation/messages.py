"""What travels: safetensors with a typed header; every field is checked for kind and bound before it is
believed.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from consilium.errors import DataError
from consilium.federation.parameters import Schema
from consilium.federation.settings import MAX_CASES, METRICS, NAME, FederationSettings
from consilium.federation.tensors import Tensors, encode_header, encode_tensors, parse_strict_json
from consilium.types import Array

KEY = "consilium"
VERSION = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_TEXT_BYTES = 256 * 1024
PARAMETERS = "parameters/"
CONTROL = "control/"


@dataclass(frozen=True, kw_only=True)
class UpdateHeader:
    """Everything an update says about itself.

    Args:
        site: Who trained.
        round_number: In which round.
        job_digest: Digest of the settings the site approved.
        base_digest: Digest of the model it started from.
        weight: Training cases.
        cases_by_structure: Structure -> cases in which it is contoured.
        metrics: Figures by permitted name.
        content: ``"parameters"``, or ``"change"`` when the arrays are differences from the model sent.
        version: Of this format.
    """

    site: str
    round_number: int
    job_digest: str
    base_digest: str
    weight: int
    cases_by_structure: Mapping[str, int]
    metrics: Mapping[str, float]
    content: str = "parameters"
    version: int = VERSION

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version != VERSION:
            raise DataError(f"update: format version must be {VERSION}; found {str(self.version)[:20]}.")
        if not isinstance(self.site, str) or not NAME.fullmatch(self.site):
            raise DataError("update: the site's name is not one.")
        if type(self.round_number) is not int or not 0 <= self.round_number < 10**6:
            raise DataError("update: the round must be a whole number from 0.")
        for digest in (self.job_digest, self.base_digest):
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise DataError("update: a digest is 64 hexadecimal digits; found something else.")
        if type(self.weight) is not int or not 1 <= self.weight <= MAX_CASES:
            raise DataError(
                f"update: weight must be a whole number from 1 to {MAX_CASES}; found {str(self.weight)[:40]}."
            )
        if self.content not in ("parameters", "change"):
            raise DataError("update: content must be 'parameters' or 'change'.")
        counts, metrics = self.cases_by_structure, self.metrics
        if not isinstance(counts, Mapping) or not all(
            type(n) is int and 1 <= n <= self.weight for n in counts.values()
        ):
            raise DataError(f"update: cases per structure must be whole numbers from 1 to {self.weight}.")
        if not isinstance(metrics, Mapping) or not all(type(v) in (int, float) for v in metrics.values()):
            raise DataError("update: metrics must be numbers.")
        if not all(math.isfinite(v) for v in metrics.values()):
            raise DataError("update: metrics must be finite.")

    def encode(self) -> dict[str, str]:
        """The header as safetensors metadata."""
        return {KEY: json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=dict)}


@dataclass(frozen=True)
class Update:
    """A decoded update: its header and its arrays, still unread."""

    header: UpdateHeader
    tensors: Tensors


def read_update(source: Path | bytes, *, max_bytes: int) -> Update:
    """Read the header of an update; no array is read.

    Raises:
        DataError: If it is too large or not exactly of this format.
    """
    tensors = Tensors(source, max_bytes=max_bytes)
    if set(tensors.metadata) != {KEY} or len(tensors.metadata[KEY]) > MAX_TEXT_BYTES:
        raise DataError(
            f"update: the metadata must be {KEY!r} alone, at most {MAX_TEXT_BYTES} bytes; it is not."
        )
    values = parse_strict_json(tensors.metadata[KEY].encode())
    names = {item.name for item in fields(UpdateHeader)}
    if set(values) != names:
        raise DataError(f"update: the header must have exactly {sorted(names)}; it has not.")
    return Update(UpdateHeader(**values), tensors)


def encode_update(
    header: UpdateHeader, parameters: Mapping[str, Array], control: Mapping[str, Array]
) -> bytes:
    """An update as bytes; ``control`` is empty unless the strategy asks for it."""
    return encode_tensors(join_groups(parameters, control), header.encode())


def join_groups(parameters: Mapping[str, Array], control: Mapping[str, Array]) -> dict[str, Array]:
    """Parameters and control variates in one mapping, told apart by prefix."""
    joined = {PARAMETERS + name: array for name, array in parameters.items()}
    return joined | {CONTROL + name: array for name, array in control.items()}


def wire_schema(model: Schema, *, control: bool, half_precision: bool) -> Schema:
    """The schema of what travels for a model, in either direction."""
    prefixes = (PARAMETERS, CONTROL) if control else (PARAMETERS,)
    travelling = model.with_dtype("float16" if half_precision else None)
    return Schema(
        tuple(sorted((prefix + name, spec) for prefix in prefixes for name, spec in travelling.tensors))
    )


def max_update_bytes(wire: Schema) -> int:
    """The most bytes an update of this schema can have: arrays, their header, and the typed header."""
    return wire.nbytes + len(encode_header(wire, {})) + 2 * MAX_TEXT_BYTES


def check_metric_names(names: Mapping[str, Any], settings: FederationSettings) -> None:
    """Refuse a figure whose name could carry anything but a metric and a known structure.

    Raises:
        DataError: Without repeating the name.
    """
    for name in names:
        metric, _, structure = name.partition("/")
        if metric not in METRICS or (structure and structure not in settings.heads.structures):
            raise DataError(
                f"metrics: names are {', '.join(METRICS)}, alone or with a structure; found another."
            )
