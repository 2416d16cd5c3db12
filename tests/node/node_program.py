"""A node to be killed: ``python -m tests.node.node_program FOLDER PORT PACS_PORT``."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from consilium.node.contouring import Outcome, SeriesFiles
from consilium.node.service import Node
from consilium.node.settings import Destination, NodeSettings, Receive, Sender
from tests.node.network import LOOPBACK, PACS, SENDER, Direct, build_fake

CONTOURING_S = 0.02


def build_slow() -> Callable[[SeriesFiles, Path], Outcome]:
    """The fake contourer with a pause in it to be killed in."""
    fake = build_fake()

    def contour(files: SeriesFiles, out: Path) -> Outcome:
        outcome = fake(files, out)
        time.sleep(CONTOURING_S)
        return outcome

    return contour


def main(folder: Path, port: int, pacs_port: int) -> None:
    """Run until killed."""
    settings = NodeSettings(
        folder=folder,
        models=(Path("none"),),
        receive=replace(Receive(), port=port, quiet_s=0.5, interrupted_s=40),
        allow=(Sender(ae_title=SENDER, addresses=("127.0.0.1",)),),
        send=(Destination(ae_title=PACS, host=LOOPBACK, port=pacs_port),),
        keep_free_gib=0.0,
    )
    node = Node(settings, Direct(build_slow()))
    node.start()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    node.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
