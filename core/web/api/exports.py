"""Exports lists of runs as CSV or NDJSON, page by page. So the memory stays bounded, and each query is short."""

import csv
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from operator import attrgetter
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from core.ledger import history
from core.operations import listing
from core.operations.access import View
from core.operations.redaction import redactor
from core.operations.runs import Run
from core.operations.selection import Selection
from core.web import service
from core.web.api.ledger import Reading
from core.web.api.parameters import Chosen, Seen
from core.web.service import Service

router = APIRouter(tags=["Runs"])

PAGE = 1000
MOST = 1_000_000
COLUMNS = [name for name in Run.model_fields if name not in {"result", "progress", "cancelled"}]
values_of = attrgetter(*COLUMNS)
#: The characters at the beginning of a text that a spreadsheet would treat as a formula.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
#: Tells nginx to pass the answer on as it is made.
UNBUFFERED = {"X-Accel-Buffering": "no"}
#: A page, and a run on it.
Found = TypeVar("Found", listing.Page, listing.Rows)
T = TypeVar("T")
Most = Annotated[int, Query(ge=1, le=MOST)]


@router.get("/runs.csv", response_class=StreamingResponse, responses={200: {"content": {"text/csv": {}}}})
def as_csv(
    request: Request, connection: Reading, seen: Seen, chosen: Chosen, limit: Most = 10_000
) -> StreamingResponse:
    """Return runs as CSV, the newest first. A text that looks like a formula gets an apostrophe before it."""
    parts = checked(request, connection, seen, chosen)
    found = pages(parts, seen, chosen, limit, listing.rows, lambda page: page.runs)
    return StreamingResponse(map(rows, with_head(found)), media_type="text/csv", headers=UNBUFFERED)


@router.get(
    "/runs.ndjson", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}}
)
def as_ndjson(
    request: Request, connection: Reading, seen: Seen, chosen: Chosen, limit: Most = 10_000
) -> StreamingResponse:
    """Return runs as lines of JSON, the newest first."""
    parts = checked(request, connection, seen, chosen)
    found = pages(parts, seen, chosen, limit, listing.page, lambda page: page.items)
    return StreamingResponse(
        ("".join(f"{run.model_dump_json()}\n" for run in page) for page in found),
        media_type="application/x-ndjson",
        headers=UNBUFFERED,
    )


def checked(request: Request, connection: Reading, seen: View, chosen: Selection) -> Service:
    """Check the conditions of a list, so that errors are raised at once, and not while the answer is sent."""
    parts = service.of(request)
    listing.chosen_filter(connection, parts.registry, chosen, redactor(connection, parts.registry, seen), seen)
    return parts


def pages(
    parts: Service,
    seen: View,
    chosen: Selection,
    limit: int,
    page_of: Callable[..., Found],
    runs_of: Callable[[Found], list[T]],
) -> Iterator[list[T]]:
    """Yield the runs of the pages of a list, until its end or until the process stops."""
    cursor, left = None, limit
    while left and not parts.stopping.is_set():
        with parts.engine.connect() as connection:
            page = page_of(connection, parts.registry, chosen, limit=min(PAGE, left), cursor=cursor, view=seen)
        runs = runs_of(page)
        yield runs
        cursor, left = page.next, left - len(runs)
        if cursor is None:
            return


def with_head(pages: Iterator[list[history.Run]]) -> Iterator[list[list[str]]]:
    """Yield the header of the table, and then each page as rows."""
    yield [COLUMNS]
    for page in pages:
        yield [[cell(value) for value in values_of(run)] for run in page]


def rows(found: list[list[str]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(found)
    return text.getvalue()


def cell(value: object) -> str:
    """Return a value as a cell. Times are in ISO 8601."""
    if isinstance(value, datetime):
        return value.isoformat()
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULAS) else text
