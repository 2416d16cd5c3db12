"""Sending an object to where contours go: C-STORE or STOW-RS."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE

from consilium.errors import ConfigurationError, RunError
from consilium.node.receive import silence_network_logs
from consilium.node.settings import Destination, Tls

TIMEOUT_S = 60.0
WARNINGS = frozenset({0x0001, 0xB000, 0xB006, 0xB007})
"""Stored all the same, with elements coerced or discarded (DICOM PS3.4 table B.2-1)."""


class NotDelivered(RunError):
    """The other side did not take it, or could not be reached; says why, without patients' data."""


def deliver(content: bytes, destination: Destination, *, ae_title: str) -> None:
    """Send one object.

    Args:
        content: A DICOM file.
        destination: Where to.
        ae_title: Our own.

    Raises:
        NotDelivered: If it is not known to be there.
    """
    dataset = dcmread(io.BytesIO(content))
    if destination.url:
        _post(dataset, destination)
    else:
        _store(dataset, destination, ae_title)


def echo(destination: Destination, *, ae_title: str) -> None:
    """Ask whether a destination answers.

    Raises:
        NotDelivered: If it does not.
    """
    if destination.url:
        client = build_web_client(destination.url, destination.token_file, destination.tls)
        with web_answers(destination.name):
            client.search_for_studies(limit=1)
    else:
        association = _associate("1.2.840.10008.1.1", None, destination, ae_title)
        status = association.send_c_echo()
        association.release()
        _check_status(status, destination.name, "C-ECHO")


def _store(dataset: Any, destination: Destination, ae_title: str) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    association = _associate(dataset.SOPClassUID, syntax, destination, ae_title)
    try:
        status = association.send_c_store(dataset)
    except (ValueError, RuntimeError, AttributeError) as fault:
        association.abort()
        raise NotDelivered(
            f"{destination.name}: must take this kind of object in its transfer syntax; it does not."
        ) from fault
    association.release()
    _check_status(status, destination.name, "C-STORE")


def _associate(sop_class: str, syntax: str | None, destination: Destination, ae_title: str) -> Any:
    silence_network_logs()
    entity = AE(ae_title=ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_S
    entity.connection_timeout = TIMEOUT_S
    entity.add_requested_context(sop_class, *([syntax] if syntax else []))
    tls = destination.tls
    association = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        tls_args=None if tls is None else (tls.client_context(), destination.host),
    )
    if association.is_established:
        return association
    if association.is_rejected:
        found = "it rejects us: is our AE title known there, and theirs right?"
    else:
        found = "no connection: is it running, are host and port right, does it speak TLS as set?"
    raise NotDelivered(f"{destination.name}: must accept an association; {found}")


def _check_status(status: Dataset, name: str, what: str) -> None:
    code = status.get("Status")
    if code is None:
        raise NotDelivered(f"{name}: must answer a {what}; the connection ended before it did.")
    if code and int(code) not in WARNINGS:
        raise NotDelivered(f"{name}: must answer a {what} with success; it answers 0x{int(code):04X}.")


def _post(dataset: Any, destination: Destination) -> None:
    client = build_web_client(destination.url, destination.token_file, destination.tls)
    with web_answers(destination.name):
        answer = client.store_instances([dataset])
    failed = answer.get("FailedSOPSequence") if isinstance(answer, Dataset) else None
    if failed:
        code = int(failed[0].get("FailureReason", 0))
        raise NotDelivered(f"{destination.name}: must store the object; it answers 0x{code:04X}.")


def build_web_client(url: str, token_file: Path | None, tls: Tls | None) -> DICOMwebClient:
    """A client of a DICOMweb service that tries once.

    Raises:
        ConfigurationError: If the token's file cannot be read.
    """
    silence_network_logs()
    session = requests.Session()
    session.trust_env = False
    if tls is not None and tls.authorities is not None:
        session.verify = str(tls.authorities)
    if tls is not None and tls.certificate is not None:
        session.cert = (str(tls.certificate), str(tls.key))
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigurationError(
                f"token_file: must be a text file that can be read; {type(fault).__name__}."
            ) from fault
        session.headers["Authorization"] = f"Bearer {token}"
    client = DICOMwebClient(url, session=session, permissive_uid=True, timeout=TIMEOUT_S)
    client.set_http_retry_params(retry=False)
    return client


@contextmanager
def web_answers(name: str) -> Iterator[None]:
    """Turn what a DICOMweb client raises inside into `NotDelivered`, without addresses or UIDs."""
    try:
        yield
    except requests.HTTPError as fault:
        code = "an error" if fault.response is None else fault.response.status_code
        raise NotDelivered(f"{name}: must answer with success; it answers {code}.") from fault
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidDicomError) as fault:
        raise NotDelivered(f"{name}: must answer as DICOMweb does; {type(fault).__name__}.") from fault
