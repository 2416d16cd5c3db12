"""The status page: what came, what is contoured, what was sent, and what was refused and why."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from consilium.node.queue import Queue
from consilium.pages.page import Section, TableBlock, Text, render_page
from consilium.review.security import Guard

REFRESH_S = 5
SHOWN = 200
SERIES = f"""
SELECT number, state, (SELECT count(*) FROM objects WHERE series = number AND kind = 'image') AS images,
  (SELECT count(*) FROM objects WHERE series = number AND kind = 'structures') AS structure_sets,
  EXISTS (SELECT 1 FROM feeds WHERE series = number AND broken = 1) AS interrupted,
  attempts, changed_at, message
FROM series ORDER BY changed_at DESC LIMIT {SHOWN}"""
SENDINGS = f"""
SELECT series, destination, state, attempts, message FROM sendings
ORDER BY state = 'sent', number DESC LIMIT {SHOWN}"""
REFUSALS = f"SELECT * FROM refusals ORDER BY last_at DESC LIMIT {SHOWN}"
LEFT_OUT = "SELECT * FROM left_out ORDER BY count DESC"
COUNTS = "SELECT state, count(*) AS n FROM series GROUP BY state"
SENT = "SELECT state, count(*) AS n FROM sendings GROUP BY state"


def build_status_app(queue: Queue, *, token: str, port: int) -> Starlette:
    """The page at ``/`` and its figures at ``/status.json``; for one browser of this machine (`Guard`)."""

    async def page(_: Request) -> Response:
        html = await run_in_threadpool(lambda: render_page("Node", status_sections(read_status(queue))))
        return HTMLResponse(html, headers={"Refresh": str(REFRESH_S)})

    async def figures(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(read_status, queue))

    return Starlette(
        routes=[Route("/", page), Route("/status.json", figures)],
        middleware=[Middleware(Guard, token=token, port=port)],
    )


def read_status(queue: Queue) -> dict[str, Any]:
    """Everything the page shows; no identifier is among it."""
    return {
        "series_by_state": {row["state"]: row["n"] for row in queue.table(COUNTS)},
        "sendings_by_state": {row["state"]: row["n"] for row in queue.table(SENT)},
        "series": queue.table(SERIES),
        "sendings": queue.table(SENDINGS),
        "refusals": queue.table(REFUSALS),
        "left_out": queue.table(LEFT_OUT),
    }


def status_sections(status: dict[str, Any]) -> list[Section]:
    """The status as tables."""
    counts, sent = status["series_by_state"], status["sendings_by_state"]
    states = ("receiving", "contouring", "contoured", "refused")
    line = ", ".join(f"{counts.get(state, 0)} {state}" for state in states)
    waiting = f"{sent.get('sent', 0)} results sent, {sent.get('waiting', 0)} waiting."
    refused = counts.get("refused", 0) + sum(row["count"] for row in status["refusals"])
    blocks = [Text(text=f"Series: {line}. {waiting}")]
    if refused:
        blocks.append(Text(text=f"{refused} refusals: see below for why and what to do.", kind="warning"))
    series = _table(
        "Series",
        ("no.", "state", "images", "structure sets", "changed", "what"),
        [
            (
                row["number"],
                row["state"],
                row["images"],
                row["structure_sets"],
                _time(row["changed_at"]),
                row["message"] or ("the sender broke off; it may come back" if _waits(row) else ""),
            )
            for row in status["series"]
        ],
        flag=1,
        flagged=("refused",),
    )
    sendings = _table(
        "Sendings",
        ("series no.", "to", "state", "attempts", "what"),
        [
            (row["series"], row["destination"], row["state"], row["attempts"], row["message"])
            for row in status["sendings"]
        ],
        flag=2,
        flagged=("waiting", "given up"),
    )
    refusals = _table(
        "Not taken",
        ("from", "times", "last", "why", "what to do"),
        [
            (row["sender"], row["count"], _time(row["last_at"]), row["reason"], row["remedy"])
            for row in status["refusals"]
        ],
    )
    left_out = _table(
        "Taken and not kept", ("what", "times"), [(r["reason"], r["count"]) for r in status["left_out"]]
    )
    tables = [table for table in (series, sendings, refusals, left_out) if table.rows]
    return [Section(title="In short", blocks=blocks)] + [
        Section(title=table.title, blocks=[table]) for table in tables
    ]


def _waits(row: dict[str, Any]) -> bool:
    return bool(row["interrupted"]) and row["state"] == "receiving"


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    flag: int = 0,
    flagged: Sequence[str] = (),
) -> TableBlock:
    marked = frozenset(k for k, row in enumerate(rows) if row[flag] in flagged)
    return TableBlock(title=title, columns=columns, rows=rows, flagged=marked)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
