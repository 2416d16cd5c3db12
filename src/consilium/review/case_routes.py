"""The routes of one case: its page, slices and masks, decisions, corrections and export."""

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from consilium.cases.case import Case, State
from consilium.errors import DataError
from consilium.geometry.crop import Box
from consilium.pages.pictures import COLOURS
from consilium.review.corrections import add_correction, content_of
from consilium.review.desk import accepted_readers, case_of, desk_of, stands, structures_of
from consilium.review.rendering import render
from consilium.review.store import Decision, DecisionConflict, Recorded, Verdict
from consilium.review.thumbnails import thumbnail_png


def case_routes() -> list[Route]:
    """Below ``/place/N/case/ID``."""
    base = "/place/{place:int}/case/{case_id}"
    return [
        Route(base, _page),
        Route(f"{base}/thumbnail.png", _thumbnail),
        Route(f"{base}/slice/{{plane}}/{{index:int}}", _slice),
        Route(f"{base}/mask", _mask),
        Route(f"{base}/history", _history),
        Route(f"{base}/decide", _decide, methods=["POST"]),
        Route(f"{base}/correct", _correct, methods=["POST"]),
        Route(f"{base}/export", _export, methods=["POST"]),
    ]


async def _page(request: Request) -> Response:
    return HTMLResponse(await run_in_threadpool(_render_page, request))


def _render_page(request: Request) -> str:
    desk, case = desk_of(request), case_of(request)
    desk.images.prepare(case)
    ids = desk.dataset.case_ids
    here = ids.index(case.case_id)
    number = request.path_params["place"]
    record = case_record(case, desk.store.latest(case.case_id))
    record["base"] = f"/place/{number}/case/{case.case_id}"
    record["addable"] = sorted(set(desk.dataset.structures) - set(record["structures"]))
    look = desk.attention.look(case.case_id)
    return render(
        request,
        "case.html",
        case=case,
        record=record,
        place_number=number,
        number=here + 1,
        total=len(ids),
        previous=f"/place/{number}/case/{ids[here - 1]}",
        next=f"/place/{number}/case/{ids[(here + 1) % len(ids)]}",
        reasons=() if look is None else look.spoken,
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
                "content": content_of(a),
                "doubt": a.doubt,
                "colour": colour_of[a.structure],
            }
            for a in case.annotations
        ],
        "structures": structures_of(case),
        "decisions": {
            name: _decision_record(recorded) | {"stands": stands(case, recorded)}
            for name, recorded in latest.items()
        },
    }


async def _thumbnail(request: Request) -> Response:
    desk = desk_of(request)
    png = await run_in_threadpool(lambda: thumbnail_png(desk.dataset, desk.images, case_of(request)))
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


async def _slice(request: Request) -> Response:
    desk = desk_of(request)

    def read() -> tuple[bytes, int, int]:
        path = request.path_params
        return desk.images.slice_bytes(case_of(request), path["plane"], path["index"])

    content, height, width = await run_in_threadpool(read)
    headers = {"X-Shape": f"{height},{width}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def _mask(request: Request) -> Response:
    desk = desk_of(request)
    structure, reader = (request.query_params.get(key, "") for key in ("structure", "reader"))

    def read() -> tuple[Box | None, bytes]:
        case = case_of(request)
        annotation = case.annotation(structure, reader)
        if annotation is None or annotation.state is not State.CONTOURED:
            raise HTTPException(404, "mask: the case must have a contour of this structure and reader.")
        return desk.images.mask(case, structure, reader)

    box, bits = await run_in_threadpool(read)
    edges = "" if box is None else ",".join(map(str, (*box.start_zyx, *box.stop_zyx)))
    return Response(bits, media_type="application/octet-stream", headers={"X-Box": edges})


async def _history(request: Request) -> Response:
    history = desk_of(request).store.history(case_of(request).case_id)
    return JSONResponse([_decision_record(recorded) for recorded in history])


async def _decide(request: Request) -> Response:
    desk, case = desk_of(request), case_of(request)
    asked = _json(await request.body())
    verdict = asked.get("verdict")
    if verdict not in {"accepted", "rejected"}:
        raise DataError("decision: verdict must be accepted or rejected; to correct, send the mask.")
    reader = str(asked.get("reader"))
    if case.annotation(str(asked.get("structure")), reader) is None:
        raise HTTPException(404, "decision: the case must have a contour of this structure and reader.")
    decision = _decision(asked, case.case_id, reader, Verdict(verdict), _content_seen(case, asked))
    recorded = await run_in_threadpool(lambda: desk.store.decide(decision, seen=_seen(asked)))
    return JSONResponse(_decision_record(recorded))


async def _correct(request: Request) -> Response:
    desk, case = desk_of(request), case_of(request)
    body = await request.body()
    length = int.from_bytes(body[:4], "little")
    asked = _json(body[4 : 4 + length])
    structure = str(asked.get("structure"))
    if structure not in desk.dataset.structures:
        raise HTTPException(404, "correction: the dataset must know this structure.")

    def save() -> Recorded:
        known = desk.store.find(str(asked.get("request_id")))
        if known is not None:
            return known
        _content_seen(case, asked)
        latest, seen = desk.store.latest(case.case_id).get(structure), _seen(asked)
        if (latest.number if latest else 0) != seen:
            raise DecisionConflict(f"{structure}: somebody decided about it since this page was loaded.")
        mask = desk.images.mask_from_page(case, _box(asked.get("box")), body[4 + length :])

        def announce(reader: str) -> None:
            desk.store.intend(_decision(asked, case.case_id, reader, Verdict.CORRECTED), seen=seen)

        fresh, annotation = add_correction(desk.dataset, case.case_id, structure, mask, announce=announce)
        drawn = content_of(annotation)
        decision = _decision(asked, case.case_id, annotation.reader, Verdict.CORRECTED, drawn)
        recorded = desk.store.decide(decision, seen=seen)
        desk.attention.renew_soon(fresh)
        return recorded

    recorded = await run_in_threadpool(save)
    fresh = case_record(desk.dataset.case(case.case_id), desk.store.latest(case.case_id))
    return JSONResponse({"decision": _decision_record(recorded), "case": fresh})


async def _export(request: Request) -> Response:
    desk, case = desk_of(request), case_of(request)
    latest = desk.store.latest(case.case_id)
    chosen = accepted_readers(latest)
    if not chosen:
        raise DataError("export: at least one structure must be accepted or corrected; none is yet.")
    gone = sorted(name for name in chosen if not stands(case, latest[name]))
    if gone:
        raise DataError(
            f"export: {', '.join(gone)}: the contour that was accepted must be in the dataset; it was "
            "replaced or removed since. Look at the contour that is there now, and decide again."
        )
    note = "; ".join(
        f"{name}: {latest[name].decision.verdict} by {latest[name].decision.person} {latest[name].time_utc}"
        for name in sorted(chosen)
    )
    path = await run_in_threadpool(lambda: desk.export(desk.dataset, case, chosen, note))
    return JSONResponse({"file": str(path), "structures": sorted(chosen)})


def _content_seen(case: Case, asked: dict[str, Any]) -> str:
    """Digest of the contour meant; refused if the page showed another one under this reader's name."""
    content = content_of(case.annotation(str(asked.get("structure")), str(asked.get("reader"))))
    if asked.get("content", content) != content:
        raise DecisionConflict(
            f"{asked.get('structure')}: the contour was replaced since this page was loaded. Load the page "
            "again, look at the contour that is there now, and decide then."
        )
    return content


def _decision(
    asked: dict[str, Any], case_id: str, reader: str, verdict: Verdict, contour_sha256: str = ""
) -> Decision:
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
            contour_sha256=contour_sha256,
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


def _seen(asked: dict[str, Any]) -> int:
    seen = asked.get("seen", 0)
    if not isinstance(seen, int):
        raise DataError("decision: seen must be the number of the latest decision that was seen; it is not.")
    return seen


def _box(corners: Any) -> Box | None:
    if corners is None:
        return None
    if not isinstance(corners, list) or len(corners) != 6 or not all(isinstance(c, int) for c in corners):
        raise DataError("mask: its box must be six integers; it is not.")
    return Box(tuple(corners[:3]), tuple(corners[3:]))


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as error:
        raise DataError("request: must be JSON; it is not.") from error
    if not isinstance(content, dict):
        raise DataError("request: must be a JSON object; it is not.")
    return content
