"""The OpenAPI document, and a page that shows it without scripts and without content from other servers."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, JSONResponse

from core.web.callers import Caller
from core.web.problems import MEDIA_TYPE

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Rota: the API</title></head><body>
<h1>Rota {version}: the API</h1>
<p>This page shows <a href="{document}">the OpenAPI {openapi} document</a>. You are {name}, with the role {role}.</p>
{parts}
</body></html>
"""
PART = "<h2>{tag}</h2>\n<dl>\n{routes}\n</dl>"
ROUTE = "<dt><code>{method} {path}</code></dt><dd>{summary}{parameters}</dd>"


def document(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's OpenAPI document of ``app``, in which problems have their own media type."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for route in found["paths"].values():
            for operation in route.values():
                for answer in operation["responses"].values():
                    give_media_type(answer)
        app.openapi_schema = found
    return app.openapi_schema


def give_media_type(answer: dict[str, Any]) -> None:
    """Move the schema of a problem from JSON to the media type of problems. FastAPI has no option for this."""
    content = answer.get("content", {})
    if "Problem" in str(content.get("application/json")):
        answer["content"] = {MEDIA_TYPE: content["application/json"]}


@router.get("/api/v1/openapi.json")
def as_json(request: Request, _caller: Caller) -> JSONResponse:
    """Return the document as JSON, with the prefix below which it is published."""
    prefix = request.scope["root_path"]
    servers = {"servers": [{"url": prefix}]} if prefix else {}
    return JSONResponse({**document(request.app), **servers})


@router.get("/api")
def as_page(request: Request, caller: Caller) -> HTMLResponse:
    """Return a page that shows the document."""
    found = document(request.app)
    routes: dict[str, list[str]] = {}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            routes.setdefault(operation["tags"][0], []).append(row(method, path, operation))
    parts = "\n".join(PART.format(tag=escape(tag), routes="\n".join(rows)) for tag, rows in routes.items())
    prefix = request.scope["root_path"]
    return HTMLResponse(
        PAGE.format(
            version=escape(found["info"]["version"]),
            openapi=escape(found["openapi"]),
            document=escape(f"{prefix}/api/v1/openapi.json"),
            name=escape(caller.name),
            role=escape(caller.role),
            parts=parts,
        )
    )


def row(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return one route as HTML."""
    names = [each["name"] for each in operation.get("parameters", [])]
    told = f" <small>({escape(', '.join(names))})</small>" if names else ""
    summary = escape(" ".join(operation.get("description", operation["summary"]).split()))
    return ROUTE.format(method=method.upper(), path=escape(path), summary=summary, parameters=told)
