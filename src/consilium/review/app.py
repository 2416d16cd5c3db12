"""The page's routes: home, each place (cases, run, federation, contours, page), decisions, static files."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from consilium.errors import ConsiliumError
from consilium.pages.page import render_sections
from consilium.review.case_list import render_cases
from consilium.review.case_routes import case_routes
from consilium.review.decisions_page import decision_sections
from consilium.review.desk import Export, desk_of, open_desk
from consilium.review.home import home_cards
from consilium.review.places import Kind, Place
from consilium.review.rendering import build_templates, render
from consilium.review.security import PAGE_POLICY, Guard
from consilium.review.store import DecisionConflict

STATIC_TYPES = {".js": "text/javascript", ".css": "text/css"}


def build_app(places: Sequence[Place], *, token: str, port: int, export: Export) -> Starlette:
    """The application for datasets and other places; guarded by `Guard`.

    Args:
        places: What to show, in this order; about the cases of those with a dataset people decide.
        token: From `consilium.review.security.new_token`.
        port: Served on 127.0.0.1.
        export: Writes what was accepted.
    """
    place = "/place/{place:int}/"
    app = Starlette(
        routes=[
            Route("/", _home),
            Route("/static/{name}", _static),
            Route(place, _place),
            Route(f"{place}page", _page),
            Route(f"{place}decisions", _decisions),
            *case_routes(),
        ],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={
            ConsiliumError: _refused,
            HTTPException: _http_error,
            OSError: _not_done,
            sqlite3.Error: _not_done,
        },
    )
    app.state.templates, app.state.places = build_templates(), tuple(places)
    app.state.desks = {
        number: open_desk(shown.dataset, export)
        for number, shown in enumerate(places)
        if shown.dataset is not None
    }
    return app


async def _home(request: Request) -> Response:
    if len(request.app.state.places) == 1:
        return RedirectResponse("/place/0/", 303)
    cards = await run_in_threadpool(home_cards, request.app.state.places, request.app.state.desks)
    return HTMLResponse(render(request, "home.html", cards=cards))


def _place_of(request: Request) -> Place:
    number, places = request.path_params["place"], request.app.state.places
    if number >= len(places):
        raise HTTPException(404, "place: must be one of those shown; there is none of this number.")
    place: Place = places[number]
    return place


async def _place(request: Request) -> Response:
    place = _place_of(request)
    if place.dataset is not None:
        return HTMLResponse(await run_in_threadpool(render_cases, request, place))
    if place.kind is Kind.PAGE:
        return HTMLResponse(render(request, "frame.html", place=place, number=request.path_params["place"]))
    return HTMLResponse(await run_in_threadpool(_render_look, request, place))


def _render_look(request: Request, place: Place) -> str:
    sections = place.sections()
    return render(
        request,
        "look.html",
        place=place,
        number=request.path_params["place"],
        sections=sections,
        body=render_sections(sections),
        now=datetime.now().astimezone().strftime("%H:%M:%S"),
    )


async def _page(request: Request) -> Response:
    """A page that some verb wrote, as it is: without scripts, in a sandbox, seen through a frame."""
    place = _place_of(request)
    if place.kind is not Kind.PAGE:
        raise HTTPException(404, "page: this place has none.")
    content = await run_in_threadpool(place.folder.read_bytes)
    return HTMLResponse(content, headers={"Content-Security-Policy": PAGE_POLICY})


async def _decisions(request: Request) -> Response:
    return HTMLResponse(await run_in_threadpool(_render_decisions, request))


def _render_decisions(request: Request) -> str:
    desk, place = desk_of(request), _place_of(request)
    body = render_sections(decision_sections(desk.store.history()))
    return render(request, "decisions.html", place=place, number=request.path_params["place"], body=body)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    kind = STATIC_TYPES.get(Path(name).suffix)
    package = "consilium.pages" if name == "page.css" else "consilium.review"
    folder = resources.files(package)
    file = (folder if name == "page.css" else folder / "static") / Path(name).name
    if kind is None or not file.is_file():
        return PlainTextResponse("no such file", 404)
    return Response(file.read_bytes(), media_type=kind)


async def _refused(request: Request, error: Exception) -> Response:
    status = 409 if isinstance(error, DecisionConflict) else 400
    return PlainTextResponse(str(error), status)


async def _not_done(request: Request, error: Exception) -> Response:
    """The disk is full, a folder may not be written to or is gone: what was asked for was not done."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return PlainTextResponse(
        f"The system refused to read or write a file: {reason or type(error).__name__}. This was not done: "
        "free some space, or look whether the folder is there and may be written to, and try again.",
        500,
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(str(error.detail), error.status_code)
