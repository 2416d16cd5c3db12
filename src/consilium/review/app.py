"""The page's routes: a list of cases, one case, its slices and masks, decisions and export."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

import consilium
from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.errors import ConsiliumError, DataError
from consilium.geometry.crop import Box
from consilium.pages.page import render_sections
from consilium.pages.pictures import COLOURS
from consilium.review.attention import Attention
from consilium.review.corrections import add_correction, complete_corrections
from consilium.review.images import Images
from consilium.review.places import Place
from consilium.review.security import Guard
from consilium.review.store import Decision, DecisionConflict, DecisionStore, Recorded, Verdict
from consilium.review.thumbnails import thumbnail_png

STATIC_TYPES = {".js": "text/javascript", ".css": "text/css"}

Export = Callable[[Dataset, Case, dict[str, str], str], Path]
"""``export(dataset, case, structure -> reader, note) -> file written``; given by whoever wires the page."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Everything the routes need."""

    dataset: Dataset
    store: DecisionStore
    images: Images
    attention: Attention
    export: Export

    def case(self, request: Request) -> Case:
        """The case named in the address; only those of this dataset exist."""
        case_id = request.path_params["case_id"]
        if case_id not in self.dataset.case_ids:
            raise HTTPException(404, "case: must be one of this dataset; there is none of this id.")
        return self.dataset.case(case_id)


def build_app(
    dataset: Dataset | None, *, token: str, port: int, export: Export, places: Sequence[Place] = ()
) -> Starlette:
    """The application for a dataset, other places to look at, or both; guarded by `Guard`.

    Args:
        dataset: Whose contours are decided about; None: there are only places.
        token: From `consilium.review.security.new_token`.
        port: Served on 127.0.0.1.
        export: Writes what was accepted.
        places: Runs, federations and contoured images with a page each.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("consilium.review"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.globals["version"] = consilium.__version__
    app = Starlette(
        routes=[
            Route("/", _list_page),
            Route("/static/{name}", _static),
            Route("/look/{number:int}", _look),
            Route("/case/{case_id}", _case_page),
            Route("/case/{case_id}/thumbnail.png", _thumbnail),
            Route("/case/{case_id}/slice/{plane}/{index:int}", _slice),
            Route("/case/{case_id}/mask", _mask),
            Route("/case/{case_id}/history", _history),
            Route("/case/{case_id}/decide", _decide, methods=["POST"]),
            Route("/case/{case_id}/correct", _correct, methods=["POST"]),
            Route("/case/{case_id}/export", _export, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={ConsiliumError: _refused, HTTPException: _http_error},
    )
    app.state.templates, app.state.places = templates, tuple(places)
    app.state.desk = None if dataset is None else _open_desk(dataset, export)
    return app


def _open_desk(dataset: Dataset, export: Export) -> Desk:
    images = Images(dataset)
    store = DecisionStore(dataset.folder / "review" / "decisions.sqlite")
    complete_corrections(dataset, store)
    desk = Desk(
        dataset=dataset,
        store=store,
        images=images,
        attention=Attention(dataset, look_at=images.open),
        export=export,
    )
    desk.attention.start()
    return desk


def _desk(request: Request) -> Desk:
    desk: Desk | None = request.app.state.desk
    if desk is None:
        raise HTTPException(404, "cases: there is no dataset among what is shown.")
    return desk


def _render(request: Request, name: str, **values: Any) -> str:
    template = request.app.state.templates.get_template(name)
    shown = {"places": request.app.state.places, "with_cases": request.app.state.desk is not None}
    text: str = template.render(**shown, **values)
    return text


async def _look(request: Request) -> Response:
    return HTMLResponse(await run_in_threadpool(_render_look, request))


def _render_look(request: Request) -> str:
    number, places = request.path_params["number"], request.app.state.places
    if number >= len(places):
        raise HTTPException(404, "place: must be one of those shown; there is none of this number.")
    place = places[number]
    sections = place.sections()
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    return _render(
        request,
        "look.html",
        place=place,
        number=number,
        sections=sections,
        body=render_sections(sections),
        now=now,
    )


async def _list_page(request: Request) -> Response:
    if request.app.state.desk is None:
        return RedirectResponse("/look/0", 303)
    return HTMLResponse(await run_in_threadpool(_render_list, request))


def _render_list(request: Request) -> str:
    desk = _desk(request)
    order = request.query_params.get("sort", "attention")
    rows = []
    for case in desk.dataset.cases():
        latest = desk.store.latest(case.case_id)
        accepted = sum(r.decision.verdict is not Verdict.REJECTED for r in latest.values())
        rows.append(
            {
                "case": case,
                "structures": sum(case.state(s) is State.CONTOURED for s in case.structures),
                "reasons": desk.attention.reasons(case.case_id),
                "score": desk.attention.score(case.case_id),
                "decided": len(latest),
                "accepted": accepted,
            }
        )
    keys: dict[str, Callable[[dict[str, Any]], Any]] = {
        "attention": lambda row: (-row["score"], row["case"].case_id),
        "case": lambda row: row["case"].case_id,
        "decided": lambda row: (row["decided"], -row["score"]),
    }
    rows.sort(key=keys.get(order, keys["attention"]))
    return _render(request, "list.html", rows=rows, order=order, structures=desk.dataset.structures)


async def _case_page(request: Request) -> Response:
    return HTMLResponse(await run_in_threadpool(_render_case, request))


def _render_case(request: Request) -> str:
    desk = _desk(request)
    case = desk.case(request)
    ids = desk.dataset.case_ids
    here = ids.index(case.case_id)
    record = case_record(case, desk.store.latest(case.case_id))
    record["next"] = ids[(here + 1) % len(ids)]
    record["previous"] = ids[here - 1]
    reasons = desk.attention.reasons(case.case_id) or []
    return _render(
        request, "case.html", case=case, record=record, number=here + 1, total=len(ids), reasons=reasons
    )


def case_record(case: Case, latest: dict[str, Recorded]) -> dict[str, Any]:
    """What the page's script needs of a case."""
    grid, _ = case.image.grid.to_canonical()
    structures = sorted({a.structure for a in case.annotations})
    colour_of = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(structures)}
    return {
        "case_id": case.case_id,
        "shape_zyx": list(grid.shape_zyx),
        "spacing_zyx_mm": list(grid.spacing_zyx_mm),
        "modality": case.image.modality,
        "sources": [
            {
                "structure": a.structure,
                "reader": a.reader,
                "state": str(a.state),
                "voxels": a.voxels,
                "volume_cm3": a.volume_cm3,
                "derived": a.derived,
                "colour": colour_of[a.structure],
            }
            for a in case.annotations
        ],
        "decisions": {name: _decision_record(recorded) for name, recorded in latest.items()},
    }


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    kind = STATIC_TYPES.get(Path(name).suffix)
    package = "consilium.pages" if name == "page.css" else "consilium.review"
    folder = resources.files(package)
    file = (folder if name == "page.css" else folder / "static") / Path(name).name
    if kind is None or not file.is_file():
        return PlainTextResponse("no such file", 404)
    return Response(file.read_bytes(), media_type=kind)


async def _thumbnail(request: Request) -> Response:
    desk = _desk(request)
    png = await run_in_threadpool(lambda: thumbnail_png(desk.dataset, desk.images, desk.case(request)))
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


async def _slice(request: Request) -> Response:
    desk = _desk(request)

    def read() -> tuple[bytes, int, int]:
        path = request.path_params
        return desk.images.slice_bytes(desk.case(request), path["plane"], path["index"])

    content, height, width = await run_in_threadpool(read)
    headers = {"X-Shape": f"{height},{width}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def _mask(request: Request) -> Response:
    desk = _desk(request)
    structure, reader = (request.query_params.get(key, "") for key in ("structure", "reader"))

    def read() -> tuple[Box | None, bytes]:
        case = desk.case(request)
        annotation = case.annotation(structure, reader)
        if annotation is None or annotation.state is not State.CONTOURED:
            raise HTTPException(404, "mask: the case must have a contour of this structure and reader.")
        return desk.images.mask(case, structure, reader)

    box, bits = await run_in_threadpool(read)
    edges = "" if box is None else ",".join(map(str, (*box.start_zyx, *box.stop_zyx)))
    return Response(bits, media_type="application/octet-stream", headers={"X-Box": edges})


async def _history(request: Request) -> Response:
    desk = _desk(request)
    case = desk.case(request)
    return JSONResponse([_decision_record(r) for r in desk.store.history(case.case_id)])


async def _decide(request: Request) -> Response:
    desk = _desk(request)
    case = desk.case(request)
    asked = _json(await request.body())
    verdict = asked.get("verdict")
    if verdict not in {"accepted", "rejected"}:
        raise DataError("decision: verdict must be accepted or rejected; to correct, send the mask.")
    if case.annotation(str(asked.get("structure")), str(asked.get("reader"))) is None:
        raise HTTPException(404, "decision: the case must have a contour of this structure and reader.")
    decision = _decision(asked, case.case_id, str(asked.get("reader")), Verdict(verdict))
    recorded = await run_in_threadpool(lambda: desk.store.decide(decision, seen=int(asked.get("seen", 0))))
    return JSONResponse(_decision_record(recorded))


async def _correct(request: Request) -> Response:
    desk = _desk(request)
    case = desk.case(request)
    body = await request.body()
    length = int.from_bytes(body[:4], "little")
    asked = _json(body[4 : 4 + length])
    structure = str(asked.get("structure"))
    if structure not in {a.structure for a in case.annotations}:
        raise HTTPException(404, "correction: the case must know this structure.")

    def save() -> Recorded:
        known = desk.store.find(str(asked.get("request_id")))
        if known is not None:
            return known
        latest = desk.store.latest(case.case_id).get(structure)
        if (latest.number if latest else 0) != int(asked.get("seen", 0)):
            raise DecisionConflict(f"{structure}: somebody decided about it since this page was loaded.")
        corners = asked.get("box")
        box = None if corners is None else Box(tuple(corners[:3]), tuple(corners[3:]))
        mask = desk.images.mask_from_page(case, box, body[4 + length :])
        seen = int(asked.get("seen", 0))

        def announce(reader: str) -> None:
            desk.store.intend(_decision(asked, case.case_id, reader, Verdict.CORRECTED), seen=seen)

        _, annotation = add_correction(desk.dataset, case.case_id, structure, mask, announce=announce)
        return desk.store.decide(
            _decision(asked, case.case_id, annotation.reader, Verdict.CORRECTED), seen=seen
        )

    recorded = await run_in_threadpool(save)
    fresh = case_record(desk.dataset.case(case.case_id), desk.store.latest(case.case_id))
    return JSONResponse({"decision": _decision_record(recorded), "case": fresh})


async def _export(request: Request) -> Response:
    desk = _desk(request)
    case = desk.case(request)
    latest = desk.store.latest(case.case_id)
    chosen = {
        name: recorded.decision.reader
        for name, recorded in latest.items()
        if recorded.decision.verdict is not Verdict.REJECTED
    }
    if not chosen:
        raise DataError("export: at least one structure must be accepted or corrected; none is yet.")
    note = "; ".join(
        f"{name}: {latest[name].decision.verdict} by {latest[name].decision.person} {latest[name].time_utc}"
        for name in sorted(chosen)
    )
    path = await run_in_threadpool(lambda: desk.export(desk.dataset, case, chosen, note))
    return JSONResponse({"file": str(path), "structures": sorted(chosen)})


def _decision(asked: dict[str, Any], case_id: str, reader: str, verdict: Verdict) -> Decision:
    try:
        return Decision(
            request_id=str(asked["request_id"]),
            case_id=case_id,
            structure=str(asked["structure"]),
            reader=reader,
            verdict=verdict,
            person=str(asked["person"]),
            reason=str(asked.get("reason", "")),
            seconds_spent=float(asked.get("seconds_spent", 0)),
            contour_changed_mm=float(asked.get("contour_changed_mm", 0)),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"decision: a field is missing or of a wrong kind: {error}.") from error


def _decision_record(recorded: Recorded) -> dict[str, Any]:
    decision = recorded.decision
    return {
        "number": recorded.number,
        "time_utc": recorded.time_utc,
        "structure": decision.structure,
        "reader": decision.reader,
        "verdict": str(decision.verdict),
        "person": decision.person,
        "reason": decision.reason,
        "seconds_spent": decision.seconds_spent,
        "contour_changed_mm": decision.contour_changed_mm,
    }


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as error:
        raise DataError("request: must be JSON; it is not.") from error
    if not isinstance(content, dict):
        raise DataError("request: must be a JSON object; it is not.")
    return content


async def _refused(request: Request, error: Exception) -> Response:
    status = 409 if isinstance(error, DecisionConflict) else 400
    return PlainTextResponse(str(error), status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(str(error.detail), error.status_code)
