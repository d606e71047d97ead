"""Exports lists of runs as CSV or NDJSON, page by page. So the memory stays bounded, and each query is short."""

import csv
import io
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from core.operations import listing
from core.operations.access import View
from core.operations.runs import Run
from core.operations.selection import Selection
from core.web import service
from core.web.api.ledger import Reading
from core.web.api.parameters import Chosen, Seen
from core.web.service import Service

router = APIRouter(tags=["Runs"])

PAGE = 500
MOST = 1_000_000
COLUMNS = [name for name in Run.model_fields if name not in {"result", "progress", "cancelled"}]
#: The characters at the beginning of a text that a spreadsheet would treat as a formula.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
#: Tells nginx to pass the answer on as it is made.
UNBUFFERED = {"X-Accel-Buffering": "no"}
Most = Annotated[int, Query(ge=1, le=MOST)]


@router.get("/runs.csv", response_class=StreamingResponse, responses={200: {"content": {"text/csv": {}}}})
def as_csv(
    request: Request, connection: Reading, seen: Seen, chosen: Chosen, limit: Most = 10_000
) -> StreamingResponse:
    """Return runs as CSV, the newest first. A text that looks like a formula gets an apostrophe before it."""
    pages = checked(request, connection, seen, chosen, limit)
    return StreamingResponse(map(rows, with_head(pages)), media_type="text/csv", headers=UNBUFFERED)


@router.get(
    "/runs.ndjson", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}}
)
def as_ndjson(
    request: Request, connection: Reading, seen: Seen, chosen: Chosen, limit: Most = 10_000
) -> StreamingResponse:
    """Return runs as lines of JSON, the newest first."""
    pages = checked(request, connection, seen, chosen, limit)
    return StreamingResponse(
        ("".join(f"{run.model_dump_json()}\n" for run in page) for page in pages),
        media_type="application/x-ndjson",
        headers=UNBUFFERED,
    )


def checked(request: Request, connection: Reading, seen: View, chosen: Selection, limit: int) -> Iterator[list[Run]]:
    """Return the pages of a list. Errors in its conditions are raised at once, and not while the answer is being
    sent.
    """
    parts = service.of(request)
    listing.refuse_search(chosen, seen)
    listing.chosen_filter(connection, parts.registry, chosen)
    return pages(parts, seen, chosen, limit)


def pages(parts: Service, seen: View, chosen: Selection, limit: int) -> Iterator[list[Run]]:
    """Yield the pages of a list, until its end or until the process stops."""
    cursor, left = None, limit
    while left and not parts.stopping.is_set():
        with parts.engine.connect() as connection:
            page = listing.page(connection, parts.registry, chosen, limit=min(PAGE, left), cursor=cursor, view=seen)
        yield page.items
        cursor, left = page.next, left - len(page.items)
        if cursor is None:
            return


def with_head(pages: Iterator[list[Run]]) -> Iterator[list[list[str]]]:
    """Yield the header of the table, and then each page as rows."""
    yield [COLUMNS]
    for page in pages:
        yield [[cell(value) for value in run.model_dump(mode="json", include=set(COLUMNS)).values()] for run in page]


def rows(found: list[list[str]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(found)
    return text.getvalue()


def cell(value: object) -> str:
    """Return a value as a cell."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULAS) else text
