"""What a certificate request really asks for: FLARE signs what is written inside, not the file's name."""

import hashlib
import json
import zipfile
from pathlib import Path

from consilium.errors import ConfigurationError, DataError

MAX_BYTES = 2**20


def check_request(request: Path, name: str) -> str:
    """Hold a hospital's request to the one certificate it may ask for: a client's, in its own name.

    Args:
        request: The zip file.
        name: The enrolled site that it came from.

    Returns:
        SHA-256 of the public key in DER, 64 hexadecimal digits, as `read_key_digest`.

    Raises:
        DataError: If it is no request.
        ConfigurationError: If it asks for another name or another kind of certificate.
    """
    asked, names, digest = _read_request(request)
    others = sorted({str(asked["name"]), *names} - {name})
    if others or len(names) != 1:
        raise ConfigurationError(
            f"approve: {request.name} must ask for the name {name}; it asks for "
            f"{', '.join(others)[:200] or f'{len(names)} names'}. Sign nothing, and talk to the hospital."
        )
    if asked.get("cert_type") != "client":
        raise ConfigurationError(
            f"approve: {request.name} must ask for a client's certificate; it asks for one of kind "
            f"{str(asked.get('cert_type'))[:20]!r}. Sign nothing, and talk to the hospital."
        )
    return digest


def read_key_digest(request: Path) -> str:
    """SHA-256 of the public key in a request: what hospital and coordinator may compare by telephone.

    Raises:
        DataError: If it is no request.
    """
    return _read_request(request)[2]


def _read_request(request: Path) -> tuple[dict[str, object], list[str], str]:
    """What ``request.json`` says; the names and the key in the certificate request beside it."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    except ImportError as missing:
        raise ConfigurationError(
            "approve: reading a request needs cryptography. pip install 'consilium[federation]'."
        ) from missing
    fault = DataError(f"approve: {request.name} must be a request of consilium federation enrol; it is not.")
    try:
        with zipfile.ZipFile(request) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if any(entry.file_size > MAX_BYTES for entry in entries.values()):
                raise fault
            asked = json.loads(archive.read("request.json"))
            content = archive.read(f"{asked['name']}.csr")
        csr = x509.load_pem_x509_csr(content)
    except (zipfile.BadZipFile, KeyError, RuntimeError, TypeError, ValueError) as reason:
        raise fault from reason
    names = [str(a.value) for a in csr.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return asked, names, hashlib.sha256(key).hexdigest()
