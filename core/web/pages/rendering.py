"""Renders the templates. Every value is escaped, and a name that is missing is an error."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from core.observability.redaction import HIDDEN
from core.operations import wording
from core.operations.runs import outcome
from core.web.pages import assets, instants, states

TEMPLATES = Path(__file__).parent / "templates"
#: A shorter page is not compressed.
WORTH_PACKING = 1400
PACKING = 5

environment = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
environment.filters.update(
    when=instants.when,
    in_words=instants.in_words,
    utc=instants.utc,
    ago=instants.relative,
    span=instants.span,
    clock=instants.clock,
    late=instants.late,
    took=instants.took,
    count=instants.count,
    state=states.state,
    glyph=states.glyph,
    colour=states.colour,
    brief=wording.brief,
    outcome=outcome,
    moment=datetime.fromisoformat,
    as_json=lambda value: json.dumps(value, ensure_ascii=False, indent=2),
)


environment.globals.update(hidden=HIDDEN)


def address(prefix: str, path: str, /, **query: Any) -> str:
    """Return an address of the service. Parameters that are None or empty are left out, and a list gives one for each
    of its values.
    """
    given = {name: value for name, value in query.items() if value is not None and value != ""}
    return f"{prefix}{quote(path)}{'?' if given else ''}{urlencode(given, doseq=True)}"


def rendered(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page. It is compressed if the browser reads that."""
    prefix = str(request.scope["root_path"])
    text = environment.get_template(template).render(
        at=lambda path, /, **query: address(prefix, path, **query),
        asset=lambda name: prefix + assets.address(name),
        **values,
    )
    body, headers = text.encode(errors="replace"), {"Vary": "Accept-Encoding"}
    if len(body) > WORTH_PACKING and assets.takes_gzip(request):
        body, headers = gzip.compress(body, PACKING), {**headers, "Content-Encoding": "gzip"}
    return HTMLResponse(body, status, headers)
