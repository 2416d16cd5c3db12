"""What a hospital's certificate request may ask for."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from consilium.cli.federation import app
from consilium.errors import ConfigurationError, DataError
from consilium.federation.engine import kit
from consilium.federation.engine.request import check_request, read_key_digest
from consilium.federation.invitation import FEDERATION_TEMPLATE


def write_request(
    path: Path, *, name: str, cert_type: str = "client", subjects: tuple[str, ...] = ()
) -> Path:
    """As ``enrol`` makes it; ``subjects`` where the certificate request bears other names."""
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject) for subject in subjects or (name,)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("request.json", json.dumps({"name": name, "cert_type": cert_type}))
        archive.writestr("site.yaml", "{}")
        archive.writestr(f"{name}.csr", csr.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_request_for_a_clients_certificate_in_its_own_name_is_in_order(tmp_path: Path) -> None:
    request = write_request(tmp_path / "hospital-b.request.zip", name="hospital-b")
    digest = check_request(request, "hospital-b")
    assert len(digest) == 64
    assert digest == read_key_digest(request)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ({"name": "hospital-a"}, "must ask for the name hospital-b; it asks for hospital-a"),
        ({"name": "hospital-b", "subjects": ("hospital-a",)}, "it asks for hospital-a"),
        ({"name": "hospital-b", "subjects": ("hospital-a", "hospital-b")}, "it asks for hospital-a"),
        (
            {"name": "hospital-b", "cert_type": "server"},
            "a client's certificate; it asks for one of kind 'ser",
        ),
        ({"name": "hospital-b", "cert_type": "org_admin"}, "a client's certificate"),
    ],
)
def test_a_request_for_anything_else_is_not_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: dict[str, str], reason: str
) -> None:
    signed = []
    monkeypatch.setattr(kit, "approve_request", lambda folder, request: signed.append(request))
    (tmp_path / "federation.toml").write_text(FEDERATION_TEMPLATE)
    request = write_request(tmp_path / "hospital-b.request.zip", **inside)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=reason):
        check_request(request, "hospital-b")
    assert CliRunner().invoke(app, ["approve", str(tmp_path), str(request)]).exit_code != 0
    assert not signed
    honest = write_request(tmp_path / "hospital-b.request.zip", name="hospital-b")
    told = CliRunner().invoke(app, ["approve", str(tmp_path), str(honest)])
    assert signed == [honest], told.output
    assert read_key_digest(honest)[:16] in told.output


@pytest.mark.parametrize("content", [b"no zip", b"[]", b'{"name": "b"}', b'"name"', b"\xff"])
def test_what_is_no_request_is_refused(tmp_path: Path, content: bytes) -> None:
    request = tmp_path / "b.request.zip"
    if content == b"no zip":
        request.write_bytes(content)
    else:
        with zipfile.ZipFile(request, "w") as archive:
            archive.writestr("request.json", content)
    with pytest.raises(DataError, match="must be a request"):
        check_request(request, "b")


@pytest.mark.network
def test_a_request_that_the_transport_made_is_read(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")
    (tmp_path / "h").mkdir()
    made = kit.write_request(tmp_path / "h", "toy", "hospital-b")
    request = shutil.copy(made, tmp_path)
    assert check_request(Path(request), "hospital-b") == read_key_digest(made)
    with pytest.raises(ConfigurationError, match="must ask for the name hospital-a"):
        check_request(Path(request), "hospital-a")
