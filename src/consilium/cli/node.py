"""``consilium node``: a DICOM node that contours every series it is sent, and sends the contours back."""

import functools
import importlib.util
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.cli.console import console, fail, print_table
from consilium.errors import ConfigurationError, ConsiliumError, DataError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

EXAMPLE = """\
# A node of consilium. Paths are relative to this file. Start it with: consilium node run FILE
folder = "node"                  # queue and received objects; holds patients: keep it on an encrypted disk
models = ["model.consilium"]     # runs or model files, as for consilium contour
format = "rtstruct"              # or "seg"

[receive]
ae_title = "CONSILIUM"
host = "127.0.0.1"               # the address to listen on
port = 11112
# tls = { certificate = "node.pem", key = "node.key", authorities = "hospital-ca.pem" }

[[allow]]                        # who may send, and from where; everybody else is refused
ae_title = "PACS"
addresses = ["127.0.0.1"]

[[send]]                         # where contours go: a DICOM node …
ae_title = "PACS"
host = "127.0.0.1"
port = 4242

# [[send]]                       # … or a DICOMweb service
# url = "https://pacs.example/dicom-web"
# token_file = "token"

# [[source]]                     # a DICOMweb service that is asked for the CT of the last days
# url = "https://pacs.example/dicom-web"
# days = 1
# every_s = 60
"""


@app.callback()
def node() -> None:
    """Receive CT by DICOM, contour each complete series, send the contours back.

    Everything a node does stands in one TOML file: print one to start from with [bold]example[/bold], ask
    whether its destinations answer with [bold]check[/bold], then [bold]run[/bold] it.
    """


@app.command()
def example() -> None:
    """Print a commented file to start from: consilium node example > node.toml."""
    typer.echo(EXAMPLE, nl=False)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The node's TOML file.")]) -> None:
    """Check the file, load the model, and ask every destination whether it answers (C-ECHO, QIDO-RS)."""
    from consilium.cli.contour import structures_of
    from consilium.node.deliver import NotDelivered, echo

    settings = _settings(file)
    structures = [", ".join(structures_of(model)) for model in settings.models]
    console.print(f"Contours: {structures[0]}", markup=False)
    rows, faults = [], 0
    for destination in settings.send:
        try:
            echo(destination, ae_title=settings.receive.ae_title)
            rows.append((destination.name, "answers"))
        except NotDelivered as fault:
            faults += 1
            rows.append((destination.name, str(fault)))
    print_table("Destinations", ("destination", "what it does"), rows)
    if faults:
        raise fail(f"{faults} of {len(rows)} destinations do not answer.")


@app.command()
def run(file: Annotated[Path, typer.Argument(help="The node's TOML file.")]) -> None:
    """Run the node until Ctrl-C or SIGTERM; whatever ends it, nothing received is lost.

    What happens is told line by line, without patients' names or ids; the status page, on this machine only,
    lists every series, sending and refusal.
    """
    from consilium.node.contouring import ContourProcess
    from consilium.node.service import Node

    settings = _settings(file)
    contouring = ContourProcess(functools.partial(build_contourer, settings.models, settings.format))
    running = Node(settings, contouring, note=_note)
    signal.signal(signal.SIGTERM, _interrupt)
    running.start()
    try:
        with _status_page(running.queue, settings.folder, settings.page_port) as address:
            listening = f"{settings.receive.ae_title} on {settings.receive.host} port {running.port}"
            _note(f"Listening as {listening}." if running.port else "Listening to nobody; asking sources.")
            _note(f"Status page: {address}")
            running.wait()
    finally:
        _note("Stopping.")
        running.stop()


@app.command()
def status(file: Annotated[Path, typer.Argument(help="The node's TOML file.")]) -> None:
    """Print what the status page shows, whether the node runs or not."""
    from consilium.node.page import read_status, status_sections
    from consilium.pages.page import TableBlock, Text

    with _queue(file) as queue:
        shown = read_status(queue)
    for section in status_sections(shown):
        for block in section.blocks:
            if isinstance(block, TableBlock):
                print_table(block.title, block.columns, block.rows)
            elif isinstance(block, Text):
                console.print(block.text, markup=False)


@app.command()
def retry(
    file: Annotated[Path, typer.Argument(help="The node's TOML file.")],
    number: Annotated[int, typer.Argument(help="Number of the series, as the status page gives it.")],
) -> None:
    """Try a refused series again, and send waiting contours of it at once; works while the node runs."""
    with _queue(file) as queue:
        if not queue.retry(number, now=time.time()):
            raise fail(f"series no. {number}: there must be something to try again; there is nothing.")
    console.print(f"Series no. {number} is tried again.", markup=False)


def build_contourer(models: tuple[Path, ...], form: str) -> Callable[..., Any]:
    """The function that contours one series with the models; loads them once.

    Args:
        models: Runs or model files.
        form: ``"rtstruct"`` or ``"seg"``.
    """
    from consilium.cli.contour import build_drawer
    from consilium.node.contouring import Outcome, SeriesFiles

    draw = build_drawer(models)

    def contour(files: SeriesFiles, out: Path) -> Outcome:
        try:
            _contour_series(files.images, out, form, draw)
        except DataError as error:
            return Outcome(message=str(error), lasting=True)
        except ConsiliumError as error:
            return Outcome(message=str(error))
        except Exception as error:  # noqa: BLE001 - the edge of one series; what it says may hold identifiers
            return Outcome(message=f"this is a bug in consilium ({type(error).__name__}).")
        return Outcome()

    return contour


def _contour_series(images: Sequence[Path], out: Path, form: str, draw: Callable[..., Any]) -> None:
    from consilium.cli.contour import write_dicom
    from consilium.importers.dicom_scan import scan_dicom
    from consilium.importers.dicom_series import read_series

    scan = scan_dicom(images)
    if len(scan.series) != 1:
        raise scan.refused[0] if scan.refused else DataError("series: must be one of CT; it is not.")
    (header,) = scan.series
    volume, _ = read_series(header)
    masks, name, digest = draw(volume)
    write_dicom(out, form, masks, volume.grid, header, name=name, digest=digest)


@contextmanager
def _status_page(queue: Any, folder: Path, port: int) -> Iterator[str]:
    """Serve the status page in a thread; gives its address."""
    import uvicorn

    from consilium.node.page import build_status_app

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(f"page_port: must be free; {port} is not. Take another, or 0.") from error
    # The address is told at once: who opens it before the server runs waits instead of being refused.
    listener.listen()
    port = listener.getsockname()[1]
    token = _page_token(folder / "page-token")
    app = build_status_app(queue, token=token, port=port)
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(5)


def _page_token(path: Path) -> str:
    """The page's token: made once, so that its address stays the same."""
    from consilium.cases.files import write_atomically
    from consilium.review.security import new_token

    if not path.exists():
        write_atomically(path, new_token().encode(), mode=0o600)
    return path.read_text(encoding="ascii").strip()


@contextmanager
def _queue(file: Path) -> Iterator[Any]:
    from consilium.node.queue import Queue
    from consilium.node.service import QUEUE

    path = _settings(file).folder / QUEUE
    if not path.exists():
        raise fail("folder: must hold a node's queue; it does not. Start the node: consilium node run FILE")
    queue = Queue(path)
    try:
        yield queue
    finally:
        queue.close()


def _settings(file: Path) -> Any:
    from consilium.node.settings import read_node_settings

    if importlib.util.find_spec("pynetdicom") is None or importlib.util.find_spec("dicomweb_client") is None:
        raise ConfigurationError("node: needs two more packages: pip install 'consilium[node]'")
    return read_node_settings(file)


def _note(line: str) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    console.print(f"{stamp} {line}", markup=False, highlight=False, soft_wrap=True)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
