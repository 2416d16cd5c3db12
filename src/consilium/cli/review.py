"""``consilium review``: open the local page on which a person looks at contours and decides."""

import socket
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset, open_dataset
from consilium.cli.console import console
from consilium.errors import ConfigurationError


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
    from consilium.review.places import Kind, find_places
    from consilium.review.security import new_token

    places = find_places(folder)
    datasets = [open_dataset(place.folder) for place in places if place.kind is Kind.DATASET]
    others = [place for place in places if place.kind is not Kind.DATASET]
    dataset = datasets[0] if datasets else None
    for left_out in datasets[1:]:
        console.print(f"{left_out.folder.name} is another dataset: look at it alone.", markup=False)
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
    app = build_app(dataset, token=token, port=port, export=export_accepted, places=others)
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def export_accepted(dataset: Dataset, case: Case, chosen: dict[str, str], note: str) -> Path:
    """Write the accepted contours of a case as an RTSTRUCT beside the decisions.

    Args:
        dataset: Holds the case.
        case: Must come from DICOM.
        chosen: Structure -> reader.
        note: Who accepted what and when.
    """
    from consilium.exporters.dicom_reference import SeriesReference
    from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks

    reference = SeriesReference.from_record(dataset.private_part().read_record(case.case_id))
    path = dataset.folder / "review" / "exports" / f"{case.case_id}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    masks = ((name, dataset.load_mask(case, name, reader)) for name, reader in sorted(chosen.items()))
    readers = ", ".join(sorted(set(chosen.values())))
    export_rtstruct(
        path,
        rois_from_masks(masks, case.image.grid),
        case.image.grid,
        reference,
        algorithm=Algorithm(
            name="consilium review",
            model_sha256=readers[:64],
            parameters=note,
            generation="SEMIAUTOMATIC",
        ),
    )
    return path
