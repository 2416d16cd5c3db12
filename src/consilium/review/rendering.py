"""Templates of the local page; everything that is put into them is escaped."""

from typing import Any

import jinja2
from starlette.requests import Request

import consilium


def build_templates() -> jinja2.Environment:
    """The templates, with escaping on."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("consilium.review"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.globals["version"] = consilium.__version__
    return templates


def render(request: Request, name: str, **values: Any) -> str:
    """A template with the places that are shown on every page."""
    template = request.app.state.templates.get_template(name)
    text: str = template.render(places=request.app.state.places, **values)
    return text
