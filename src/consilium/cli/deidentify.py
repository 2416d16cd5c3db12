"""``consilium deidentify``: copies of DICOM files that may leave the hospital."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.files import write_atomically
from consilium.cli.console import console, print_table, progress_bar
from consilium.errors import ConfigurationError
from consilium.exporters.deidentify import Deidentifier, deidentify_folder
from consilium.standards.names import find_sure_name

KEY_BYTES = 32


def deidentify(
    source: Annotated[Path, typer.Argument(help="Folder with CT, RTSTRUCT, SEG and RT dose.")],
    out: Annotated[Path, typer.Argument(help="Folder for the copies; made if absent.")],
    key: Annotated[
        Path, typer.Option(help="Secret key file, made if absent; the same key gives the same pseudonyms.")
    ],
) -> None:
    """Copy DICOM files without identity: keyed UIDs keep the references, everything unknown is removed.

    Structures get standard names where these are sure, else numbers. Secondary captures, dose sheets and
    every other kind of object are refused and listed.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source.name}: must be a folder; it is none.")
    if out.resolve().is_relative_to(source.resolve()) or key.resolve().is_relative_to(out.resolve()):
        raise ConfigurationError("out and key: must lie outside the source, and the key outside the copies.")
    if not key.exists():
        write_atomically(key, secrets.token_bytes(KEY_BYTES).hex().encode(), mode=0o600)
        console.print(
            f"New key in {key}: keep it in the hospital, and never beside the copies.", markup=False
        )
    deidentifier = Deidentifier(_read_key(key), find_sure_name)
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    with progress_bar() as progress:
        refused = deidentify_folder(paths, out, deidentifier, progress=progress)
    if refused:
        rows = [(refusal.where, refusal.reason, refusal.remedy) for refusal in refused]
        print_table("Refused", ("file", "reason", "what to do"), rows)
    written = sum(1 for path in out.rglob("*.dcm"))
    console.print(f"{written} copies in {out}; {len(refused)} files refused.", markup=False)


def _read_key(path: Path) -> bytes:
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise ConfigurationError(f"{path.name}: must hold the key in hexadecimal; it does not.") from error
