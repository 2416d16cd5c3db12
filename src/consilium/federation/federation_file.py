"""The two TOML files: the federation's, which everybody has and whose digest each site approves, and a
site's own.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from consilium.errors import ConfigurationError
from consilium.federation.durable import write_durably
from consilium.federation.settings import NAME, FederationSettings, build_settings, encode_settings


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Where the coordinator listens; simulated runs ignore it."""

    host: str
    port: int = 8702

    def __post_init__(self) -> None:
        if not self.host or not all(c.isalnum() or c in ".-" for c in self.host):
            raise ConfigurationError(f"coordinator: host must be a name or an address; found {self.host!r}.")
        if type(self.port) is not int or not 1 <= self.port <= 65535:
            raise ConfigurationError(f"coordinator: port must be 1 to 65535; found {self.port!r}.")


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """A hospital's own file.

    Args:
        name: As enrolled.
        training: ``module:function`` of this hospital's own installed code; the function takes the path of
            this file and returns a `LocalUpdate`. Nothing the coordinator sends can change it.
        approved: First 12 or more digits of the digest of the federation file that this hospital agreed to.
        federation: The federation file, beside this one.
        poll_s: Seconds between two looks at the coordinator.
        hospital: What this hospital's training needs to know: where its data is. Only the training reads it.
    """

    name: str
    training: str
    approved: str = ""
    federation: str = "federation.toml"
    poll_s: float = 2.0
    hospital: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"site file: name is letters, digits, - and _; found {self.name[:80]!r}."
            )
        module, _, function = self.training.partition(":")
        if not (module and all(p.isidentifier() for p in module.split(".")) and function.isidentifier()):
            raise ConfigurationError(
                f"site file: training must be module:function; found {self.training[:80]!r}."
            )
        if not 0.01 <= self.poll_s <= 3600:
            raise ConfigurationError(f"site file: poll_s must be 0.01 to 3600 s; found {self.poll_s}.")


def read_federation_file(path: Path) -> tuple[FederationSettings, Coordinator | None]:
    """Settings, and where the coordinator listens (None if the file does not say).

    Raises:
        ConfigurationError: If the file is missing, not TOML, or says what cannot be.
    """
    table = _read_toml(path)
    place = table.pop("coordinator", None)
    try:
        coordinator = None if place is None else Coordinator(**place)
    except TypeError as fault:
        raise ConfigurationError(f"{path.name}: coordinator has host and port; {fault}.") from fault
    return build_settings(table), coordinator


def write_federation_file(path: Path, settings: FederationSettings, coordinator: Coordinator | None) -> None:
    """Write the federation file; `read_federation_file` gives the same settings, so the same digest."""
    kept = {key: value for key, value in encode_settings(settings).items() if value not in ({}, [])}
    if coordinator is not None:
        kept["coordinator"] = asdict(coordinator)
    write_durably(path, (HEADING + encode_toml(kept)).encode())


HEADING = (
    "# The federation. Everybody has the same file; every hospital approves its digest before it trains.\n"
)


def encode_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Plain values, lists and nested tables as TOML; a list of tables becomes ``[[name]]`` entries."""
    lines, later = [], []
    for key, value in table.items():
        name = prefix + _toml_key(key)
        if isinstance(value, Mapping):
            later.append(f"\n[{name}]\n{encode_toml(value, name + '.')}")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            entries = ["".join(f"{_toml_key(k)} = {_toml_value(v)}\n" for k, v in e.items()) for e in value]
            later += [f"\n[[{name}]]\n{entry}" for entry in entries]
        else:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}\n")
    return "".join([*lines, *later])


def _toml_key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def read_site_file(path: Path) -> tuple[SiteFile, FederationSettings, Coordinator | None]:
    """A site's file and the federation file it names.

    Raises:
        ConfigurationError: If either is wrong, or the federation does not enrol the site.
    """
    try:
        site = SiteFile(**_read_toml(path))
    except TypeError as fault:
        raise ConfigurationError(
            f"{path.name}: has name, training, approved, federation, poll_s and [hospital]; {fault}."
        ) from fault
    settings, coordinator = read_federation_file(path.parent / site.federation)
    if settings.get_site(site.name) is None:
        names = ", ".join(s.name for s in settings.sites)
        raise ConfigurationError(
            f"{path.name}: {site.name} is not enrolled in {settings.name}. It has: {names}."
        )
    return site, settings, coordinator


def check_approval(site: SiteFile, settings: FederationSettings) -> None:
    """Refuse to train for a federation that the hospital did not agree to.

    Raises:
        ConfigurationError: With the digest to approve.
    """
    if len(site.approved) < 12 or not settings.digest.startswith(site.approved):
        raise ConfigurationError(
            f"site {site.name}: approved must be the digest of the federation file; found "
            f"{site.approved[:12] or 'nothing'}. Read the file; to agree, set approved = "
            f'"{settings.digest[:16]}".'
        )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise ConfigurationError(f"{path.name}: the file must exist; it does not.") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigurationError(f"{path.name}: must be TOML; {fault}.") from fault
