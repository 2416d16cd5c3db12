"""Radiomics settings from and to a short TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from consilium.errors import ConfigurationError
from consilium.radiomics.settings import (
    Discretisation,
    FixedBinNumber,
    FixedBinWidth,
    IntegerLevels,
    RadiomicsSettings,
)

KINDS: dict[str, type[Discretisation]] = {
    "fixed-bin-number": FixedBinNumber,
    "fixed-bin-width": FixedBinWidth,
    "integers": IntegerLevels,
}


def ct_settings() -> RadiomicsSettings:
    """What ``consilium features`` takes without settings, for CT: voxels of 1 mm, bins of 25 HU."""
    return RadiomicsSettings(resampled_spacing_zyx_mm=(1.0, 1.0, 1.0))


def load_settings(path: Path) -> RadiomicsSettings:
    """Read settings; what the file does not name has the value of `ct_settings`.

    Every field of `RadiomicsSettings` may stand in the file; ``discretisation`` and ``volume_histogram`` are
    tables with a ``kind`` of `KINDS` and that kind's fields; an empty ``resampled_spacing_zyx_mm`` keeps the
    grid.

    Raises:
        ConfigurationError: If the file is no TOML, or a name or value in it cannot be.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name}: must be a TOML file; {error}.") from error
    known = {field.name for field in fields(RadiomicsSettings)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise ConfigurationError(f"{path.name}: may name {sorted(known)}; found {unknown}.")
    values = {field.name: getattr(ct_settings(), field.name) for field in fields(RadiomicsSettings)}
    try:
        return RadiomicsSettings(**values | {name: _value(name, value) for name, value in record.items()})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path.name}: a value is of the wrong kind; {error}.") from error


def settings_to_json(settings: RadiomicsSettings) -> dict[str, Any]:
    """Every setting as plain values, as it stands beside a result."""
    record = asdict(settings)
    for name in ("discretisation", "volume_histogram"):
        how = getattr(settings, name)
        kind = next(kind for kind, owner in KINDS.items() if isinstance(how, owner))
        record[name] = {"kind": kind, **asdict(how)}
    return record


def _value(name: str, value: Any) -> Any:
    if name in {"discretisation", "volume_histogram"}:
        return _discretisation(name, value)
    if name == "resampled_spacing_zyx_mm" and value == []:
        return None
    if name in {"resampled_spacing_zyx_mm", "intensity_range"}:
        return tuple(float(number) for number in value)
    return tuple(value) if isinstance(value, list) else value


def _discretisation(name: str, value: Mapping[str, Any]) -> Discretisation:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in KINDS:
        raise ConfigurationError(f"{name}: needs a kind among {sorted(KINDS)}; found {kind!r}.")
    return KINDS[kind](**{key: number for key, number in value.items() if key != "kind"})
