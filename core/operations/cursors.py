"""Cursors of lists. A cursor says where a page ends, and is valid only for a list with the same conditions."""

import base64
import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from core.errors import SelectionError
from core.ledger.listing import Place
from core.ledger.operations import Filter
from core.operations.selection import Selection

VERSION = 1


def cursor(run: Row[Any], wanted: Filter, chosen: Selection) -> str:
    """Return the cursor of the page that ends with ``run``."""
    return of_place(Place(run.id, (run.finished_at or run.queued_at) if wanted.is_by_time else None), chosen)


def of_place(place: Place, chosen: Selection) -> str:
    """Return the cursor of the page that begins after ``place``."""
    body = json.dumps([VERSION, fingerprint(chosen), place.id, place.at.isoformat() if place.at is not None else None])
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def place(text: str | None, chosen: Selection, wanted: Filter) -> Place | None:
    """Return the place where the next page begins, or None for the first page.

    Raises SelectionError for an invalid cursor, and for the cursor of a list with other conditions.
    """
    if text is None:
        return None
    try:
        version, bound_to, run_id, at = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        found = Place(int(run_id), datetime.fromisoformat(at) if at is not None else None)
        is_whole = version == VERSION and 0 < found.id < 2**63
    except (ValueError, TypeError, RecursionError):
        is_whole = False
    if is_whole and bound_to != fingerprint(chosen):
        raise SelectionError("the cursor belongs to a list with other conditions; begin with the first page")
    if not is_whole or (found.at is not None) != wanted.is_by_time:
        raise SelectionError("the cursor is not valid; begin with the first page")
    return found


def fingerprint(chosen: Selection) -> str:
    """Return a hash of the conditions of a list."""
    return hashlib.sha256(json.dumps(asdict(chosen), sort_keys=True).encode()).hexdigest()[:16]
