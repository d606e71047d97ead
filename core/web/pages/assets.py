"""The static files of the pages.

Their addresses have a hash of all files, so that browsers may keep them for ever. All files share one hash, so that
modules can import each other by relative names.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file, as it is and compressed."""

    body: bytes
    packed: bytes
    media_type: str


@lru_cache(maxsize=1)
def assets() -> Mapping[str, Asset]:
    """Return the static files by their names, such as ``vendor/htmx.min.js``."""
    found = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*"))}
    return {name: read(path) for name, path in found.items() if path.suffix in MEDIA_TYPES}


def read(path: Path) -> Asset:
    """Return the file at ``path``."""
    body = path.read_bytes()
    return Asset(body, gzip.compress(body, mtime=0), MEDIA_TYPES[path.suffix])


@lru_cache(maxsize=1)
def version() -> str:
    """Return the hash of all static files."""
    found = hashlib.sha256()
    for name, asset in assets().items():
        found.update(f"{name}\0{len(asset.body)}\0".encode() + asset.body)
    return found.hexdigest()[:12]


def address(name: str) -> str:
    """Return the address of a static file, without the prefix of the service. Raises KeyError."""
    assets()[name]
    return f"/static/{version()}/{name}"


@router.get("/static/{given}/{name}")
def file(given: str, name: str, request: Request) -> Response:
    """Return a static file."""
    return served(request, given, name)


@router.get("/static/{given}/vendor/{name}")
def file_of_others(given: str, name: str, request: Request) -> Response:
    """Return a static file of another project."""
    return served(request, given, f"vendor/{name}")


def served(request: Request, given: str, name: str) -> Response:
    """Return a file. If the page that asks for it is from another release, the browser may not keep the file."""
    asset = assets().get(name)
    if asset is None:
        raise HTTPException(404)
    headers = {"Cache-Control": FOR_EVER if given == version() else "no-cache", "Vary": "Accept-Encoding"}
    if takes_gzip(request):
        return Response(asset.packed, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.body, media_type=asset.media_type, headers=headers)


def takes_gzip(request: Request) -> bool:
    """Return whether the client reads compressed answers."""
    return "gzip" in request.headers.get("accept-encoding", "")
