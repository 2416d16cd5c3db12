"""Frames as requests between FLARE cells: who sent one is what FLARE's signed token says, not what the frame
says.
"""

from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys

from consilium.federation.desk import Desk
from consilium.federation.frames import Bytes

CHANNEL = "consilium"
TOPIC = "frame"
COORDINATOR = "server"
TIMEOUT_S = 15.0
"""A broken connection is noticed by this alone; the first piece, a quarter of a mebibyte, takes 5 s at
50 kB/s."""


class CellCarrier:
    """A site's way to the coordinator over its FLARE cell."""

    def __init__(self, cell: Any) -> None:
        self._cell = cell.core_cell

    def __call__(self, frame: bytes) -> Bytes:
        """Send a frame and return the answer; OSError when none comes."""
        request = Message(payload=frame)
        reply = self._cell.send_request(
            CHANNEL, TOPIC, COORDINATOR, request, timeout=TIMEOUT_S, optional=True
        )
        code = reply.get_header(MessageHeaderKey.RETURN_CODE) if reply is not None else "no reply"
        if code != ReturnCode.OK or reply.payload is None:
            raise ConnectionError(f"coordinator: no answer ({code}).")
        payload: Bytes = reply.payload
        return payload


def answer_frames(cell: Any, desk: Desk) -> None:
    """From now on the desk answers what sites send to this cell.

    FLARE has verified the token's signature and its origin before this is called, so the name is the
    certificate's.
    """

    def answer(message: Message) -> Message:
        site = message.get_header(CellMessageHeaderKeys.CLIENT_NAME) or ""
        return make_reply(ReturnCode.OK, body=desk.answer(site, message.payload or b""))

    cell.core_cell.register_request_cb(CHANNEL, TOPIC, answer)
