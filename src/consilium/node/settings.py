"""The node's one TOML file, checked when it is read."""

import ipaddress
import re
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from consilium.errors import ConfigurationError

FORMATS = ("rtstruct", "seg")
MAX_AE_TITLE = 16
DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Certificates of one connection.

    Args:
        certificate, key: Our own, PEM. A receiver must have them.
        authorities: PEM of who may sign the other side's certificate. A receiver that has it lets in only
            senders with a certificate; a sender without it trusts the system's authorities.
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("tls: certificate and key must be given together; one is missing.")

    def server_context(self) -> ssl.SSLContext:
        """For receiving.

        Raises:
            ConfigurationError: If a file cannot be read or holds something else.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if self.certificate is None:
            raise ConfigurationError("receive.tls: certificate and key must be given; they are missing.")
        self._load(context)
        if self.authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext:
        """For sending; the other side's certificate and name are always checked."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
            if self.authorities is not None:
                context.load_verify_locations(self.authorities)
        except (OSError, ssl.SSLError) as fault:
            raise ConfigurationError(
                f"tls: certificate, key and authorities must be PEM files that can be read; "
                f"{type(fault).__name__}."
            ) from fault


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who may send.

    Args:
        ae_title: Its AE title, exactly.
        addresses: Addresses or networks it may come from, e.g. ``"10.1.2.0/24"``.
    """

    ae_title: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_ae_title(self.ae_title, "allow.ae_title")
        if not self.addresses:
            raise ConfigurationError(f"allow {self.ae_title}: addresses must name at least one; found none.")
        for address in self.addresses:
            try:
                ipaddress.ip_network(address, strict=False)
            except ValueError as fault:
                raise ConfigurationError(
                    f"allow {self.ae_title}: addresses are IP addresses or networks; found {address!r}."
                ) from fault

    def may_come_from(self, address: str) -> bool:
        """Whether an address is one of its own."""
        try:
            here = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(here, "ipv4_mapped", None) or here
        return any(mapped in ipaddress.ip_network(network, strict=False) for network in self.addresses)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where contours go: a DICOM node (C-STORE) or a DICOMweb service (STOW-RS)."""

    ae_title: str = ""
    host: str = ""
    port: int = 0
    url: str = ""
    token_file: Path | None = None
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.ae_title):
            raise ConfigurationError("send: give either url, or ae_title, host and port.")
        if self.url:
            _check_url(self.url, "send.url")
        else:
            _check_ae_title(self.ae_title, "send.ae_title")
            _check_port(self.port, "send.port", least=1)
            if not self.host:
                raise ConfigurationError(f"send {self.ae_title}: host must be given; it is missing.")

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{urlsplit(self.url).hostname} (STOW-RS)" if self.url else self.ae_title


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A DICOMweb service that is asked for new series.

    Args:
        url: Of the service.
        token_file: Holds a bearer token; None: none is sent.
        days: Studies of today and the days before it, so many in all; yesterday is always among them.
        every_s: Between two questions.
        filters: Further QIDO-RS filters, e.g. ``{StationName = "CT3"}``.
        tls: Authorities that sign its certificate.
    """

    url: str
    token_file: Path | None = None
    days: int = 1
    every_s: float = 60.0
    filters: Mapping[str, str] = field(default_factory=dict)
    tls: Tls | None = None

    def __post_init__(self) -> None:
        _check_url(self.url, "source.url")
        _check_range(self.every_s, "source.every_s", 0.1, DAY_S)
        _check_range(self.days, "source.days", 1, 3650)


@dataclass(frozen=True, kw_only=True)
class Receive:
    """Where and how the node listens.

    Args:
        ae_title: Its own; senders must call it by it.
        host, port: Address; port 0 takes a free one.
        quiet_s: A series is complete when nothing came for so long and its association has ended.
        interrupted_s: After an association was cut off, so long is waited for the sender to come back.
        idle_s: An association in which nothing happens for so long is ended.
        max_associations: At once.
        tls: None: plain DICOM.
    """

    ae_title: str = "CONSILIUM"
    host: str = "127.0.0.1"
    port: int = 11112
    quiet_s: float = 10.0
    interrupted_s: float = 600.0
    idle_s: float = 60.0
    max_associations: int = 8
    tls: Tls | None = None

    def __post_init__(self) -> None:
        _check_ae_title(self.ae_title, "receive.ae_title")
        _check_port(self.port, "receive.port", least=0)
        _check_range(self.quiet_s, "receive.quiet_s", 0.1, 3600)
        _check_range(self.interrupted_s, "receive.interrupted_s", self.quiet_s, 7 * DAY_S)
        _check_range(self.idle_s, "receive.idle_s", 1, 3600)
        _check_range(self.max_associations, "receive.max_associations", 1, 100)


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Everything a node is told.

    Args:
        folder: Queue and received objects. Holds patients: made with mode 0700.
        models: Runs or model files, as for ``consilium contour``.
        format: ``"rtstruct"`` or ``"seg"``.
        attempts: So often a series is tried before it is given up.
        keep_days: Received objects are deleted so long after their contours were sent; structure sets
            without a CT, so long after they came.
        keep_free_gib: Nothing is received while the disk has less left.
        page_port: Of the status page on this machine; 0 takes a free one.
        receive, allow, send, sources: See their classes.
    """

    folder: Path
    models: tuple[Path, ...]
    format: str = "rtstruct"
    attempts: int = 3
    keep_days: float = 7.0
    keep_free_gib: float = 1.0
    page_port: int = 8085
    receive: Receive = field(default_factory=Receive)
    allow: tuple[Sender, ...] = ()
    send: tuple[Destination, ...] = ()
    sources: tuple[WebSource, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigurationError(f"format: must be one of {FORMATS}; found {self.format!r}.")
        if not self.models:
            raise ConfigurationError("models: must name at least one run or model file; found none.")
        if not self.allow and not self.sources:
            raise ConfigurationError(
                "allow: at least one sender must be allowed, or one source be asked; found neither. "
                'Add: [[allow]] ae_title = "PACS", addresses = ["10.0.0.5"]'
            )
        if not self.send:
            raise ConfigurationError("send: contours must go somewhere; found no [[send]].")
        names = [d.name for d in self.send]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"send: every destination must be named once; found {names}.")
        _check_range(self.attempts, "attempts", 1, 100)
        _check_range(self.keep_days, "keep_days", 0, 36_500)
        _check_range(self.keep_free_gib, "keep_free_gib", 0, 10_000)
        _check_port(self.page_port, "page_port", least=0)


def read_node_settings(path: Path) -> NodeSettings:
    """Read and check the file; paths in it are relative to its folder.

    Raises:
        ConfigurationError: If it is missing, not TOML, or says what cannot be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise ConfigurationError(f"{path.name}: the file must exist; it does not.") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigurationError(f"{path.name}: must be TOML; {fault}.") from fault
    base = path.parent
    many = {"allow": Sender, "send": Destination, "source": WebSource}
    lists = {key: _many(table.pop(key, []), kind, key, base) for key, kind in many.items()}
    receive = _one(table.pop("receive", {}), Receive, "receive", base)
    table["sources"] = lists.pop("source")
    settings: NodeSettings = _one({**table, **lists, "receive": receive}, NodeSettings, path.name, base)
    return settings


def _many(rows: Any, kind: type, what: str, base: Path) -> tuple[Any, ...]:
    if not isinstance(rows, list):
        raise ConfigurationError(f"{what}: must be a list of tables, [[{what}]]; found another kind.")
    return tuple(_one(row, kind, what, base) for row in rows)


def _one(table: Any, kind: type, what: str, base: Path) -> Any:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{what}: must be a table; found {type(table).__name__}.")
    known = {f.name: _kind_of(f.type) for f in fields(kind)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigurationError(f"{what}: has {', '.join(known)}; found {', '.join(unknown)} beside.")
    values = dict(table)
    for name, value in values.items():
        values[name] = _value(value, known[name], f"{what}.{name}", base)
    missing = [f.name for f in fields(kind) if f.name not in values and _is_needed(f)]
    if missing:
        raise ConfigurationError(f"{what}: {', '.join(missing)} must be given; missing.")
    return kind(**values)


def _kind_of(annotation: Any) -> str:
    """``"int"``, ``"Path | None"``, ``"tuple[str, ...]"``, without modules."""
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    return re.sub(r"[\w.]*\.(?=\w)", "", text)


def _is_needed(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(value: Any, kind: str, what: str, base: Path) -> Any:
    """A value of TOML as the field wants it."""
    if "Tls" in kind and isinstance(value, dict):
        return _one(value, Tls, what, base)
    if isinstance(value, tuple | Receive):
        return value
    if kind.startswith("tuple["):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigurationError(f"{what}: must be a list of texts; found {value!r}.")
        return tuple(base / v for v in value) if "Path" in kind else tuple(value)
    if "Path" in kind:
        if not isinstance(value, str):
            raise ConfigurationError(f"{what}: must be a path; found {value!r}.")
        return base / value
    if kind == "float" and type(value) in (int, float):
        return float(value)
    wanted = {"int": int, "str": str}.get(kind)
    if wanted is not None and type(value) is not wanted:
        raise ConfigurationError(f"{what}: must be {kind}; found {value!r}.")
    if kind == "float" or (
        kind.startswith("Mapping")
        and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values()))
    ):
        raise ConfigurationError(f"{what}: must be {kind}; found {value!r}.")
    return value


def _check_ae_title(title: str, what: str) -> None:
    printable = all(" " <= c <= "~" and c != "\\" for c in title)
    if not 1 <= len(title.strip()) == len(title) <= MAX_AE_TITLE or not printable:
        raise ConfigurationError(
            f"{what}: an AE title has 1 to {MAX_AE_TITLE} ASCII characters, no backslash and no space at its "
            f"ends; found {title!r}."
        )


def _check_port(port: int, what: str, *, least: int) -> None:
    if not least <= port <= 65535:
        raise ConfigurationError(f"{what}: must be {least} to 65535; found {port}.")


def _check_range(value: float, what: str, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{what}: must be {low:g} to {high:g}; found {value:g}.")


def _check_url(url: str, what: str) -> None:
    parts = urlsplit(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ConfigurationError(
            f"{what}: must be an http(s) address without user, password or query; it is not. "
            "Give a token in a file: token_file."
        )
    if parts.scheme == "http" and not loopback:
        raise ConfigurationError(f"{what}: must be https: patients' data travel; plain http is refused.")
