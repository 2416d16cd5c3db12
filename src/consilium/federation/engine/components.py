"""The two components that FLARE's own processes load: the coordinator's desk and a hospital's site."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from consilium.errors import ConsiliumError
from consilium.federation.engine.cells import CellCarrier, answer_frames
from consilium.federation.engine.supervise import REFUSED
from consilium.federation.service import CoordinatorFolder, take_part
from consilium.federation.site import Step

LOG = logging.getLogger("consilium.federation")


class CoordinatorComponent(FLComponent):  # type: ignore[misc]
    """Answers sites and runs the rounds inside FLARE's server process.

    Args:
        folder: The federation's folder at the coordinator.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start when FLARE's server has started."""
        if event_type == EventType.SYSTEM_START:
            cell = fl_ctx.get_engine().get_cell()
            _start(lambda: self._run(cell))

    def _run(self, cell: Any) -> None:
        # Not while FLARE hands out the event: it logs what a handler raises, and waits for ever.
        federation = CoordinatorFolder(self._folder)
        answer_frames(cell, federation.desk)
        federation.run()


class SiteComponent(FLComponent):  # type: ignore[misc]
    """Takes part inside FLARE's client process.

    Args:
        site_file: The hospital's own TOML.
    """

    def __init__(self, site_file: str) -> None:
        super().__init__()
        self._site_file = Path(site_file)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start when FLARE's client is registered."""
        if event_type == EventType.SYSTEM_START:
            carrier = CellCarrier(fl_ctx.get_engine().get_cell())
            _start(lambda: take_part(self._site_file, carrier, say=_log))


def _log(step: Step) -> None:
    LOG.info("%s: %s", step.kind, step.detail)


def _start(work: Callable[[], object]) -> None:
    def run() -> None:
        code = 1
        try:
            work()
            code = 0
        except ConsiliumError as fault:
            LOG.error("%s", fault)
            code = REFUSED
        finally:
            unforeseen = sys.exception()
            if unforeseen is not None:
                # A fault of the hospital's own training would repeat for ever: it ends here, in this log.
                LOG.error("stopped by %s: %s", type(unforeseen).__name__, unforeseen, exc_info=unforeseen)
                code = REFUSED
            # FLARE's threads do not end with ours. Everything of value is on disk already, so the process
            # just ends.
            logging.shutdown()
            os._exit(code)

    threading.Thread(target=run, name="consilium", daemon=True).start()
