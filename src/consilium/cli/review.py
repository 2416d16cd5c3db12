"""``consilium review``: open the local page on which a person looks at contours and decides."""

import socket
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset
from consilium.cases.files import write_atomically
from consilium.cli.console import console
from consilium.errors import ConfigurationError, ConsiliumError
from consilium.review.places import Kind, Place


def review(
    folder: Annotated[Path, typer.Argument(help="Dataset, run, federation, output of contour or demo.")],
    port: Annotated[int, typer.Option(help="Of this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look at contours, compare readers, correct, accept or reject, and export what was accepted.

    Of a run or a federation it shows the curves while they grow; of a demo, everything that was made.

    The page is served on this machine only, to the browser that is given its address. Corrections become a
    new reader; nothing is overwritten. Ctrl-C ends it; every decision is on disk when the page says so.
    """
    import uvicorn

    from consilium.review.app import build_app
    from consilium.review.places import find_places
    from consilium.review.security import new_token

    places = [with_cases(place) for place in find_places(folder)]
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(f"--port: must be free; {port} is not. Take another, or 0.") from error
    port = listener.getsockname()[1]
    token = new_token()
    address = f"http://127.0.0.1:{port}/?token={token}"
    console.print(f"Open {address}", markup=False, highlight=False, soft_wrap=True)
    console.print("Ctrl-C ends it.")
    if browser:
        webbrowser.open(address)
    app = build_app(places, token=token, port=port, export=export_accepted)
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def with_cases(place: Place) -> Place:
    """The output of contour with a case to decide about, where its image is still there."""
    from consilium.cli.contoured import open_contoured

    if place.dataset is not None or place.kind is not Kind.CONTOURED:
        return place
    try:
        return replace(place, dataset=open_contoured(place.folder))
    except ConsiliumError as error:
        return replace(place, problem=str(error))


def export_accepted(dataset: Dataset, case: Case, chosen: dict[str, str], note: str) -> Path:
    """Write the accepted contours of a case beside the decisions: RTSTRUCT, or NIfTI where it is no DICOM.

    Args:
        dataset: Holds the case.
        case: To export.
        chosen: Structure -> reader.
        note: Who accepted what and when.

    Returns:
        The RTSTRUCT, or the folder of NIfTI files with ``decisions.txt``.
    """
    from consilium.cases.dataset import file_name_of
    from consilium.cases.nifti import write_nifti
    from consilium.exporters.dicom_reference import SeriesReference
    from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks
    from consilium.geometry.volume import Volume

    record, grid = dataset.private_part().read_record(case.case_id), case.image.grid
    masks = ((name, dataset.load_mask(case, name, reader)) for name, reader in sorted(chosen.items()))
    exports = dataset.folder / "review" / "exports"
    if record.get("kind") != "dicom":
        folder = exports / case.case_id
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("*.nii.gz"):
            earlier.unlink()
        for name, mask in masks:
            write_nifti(folder / f"{file_name_of(name)}.nii.gz", Volume(mask, grid))
        write_atomically(folder / "decisions.txt", note.replace("; ", "\n").encode() + b"\n")
        return folder
    path = exports / f"{case.case_id}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    readers = ", ".join(sorted(set(chosen.values())))
    export_rtstruct(
        path,
        rois_from_masks(masks, grid),
        grid,
        SeriesReference.from_record(record),
        algorithm=Algorithm(
            name="consilium review",
            model_sha256=readers[:64],
            parameters=note,
            generation="SEMIAUTOMATIC",
        ),
    )
    return path
