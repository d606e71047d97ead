"""Routes for the sessions of browsers that have logged in."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from core.operations import sessions
from core.operations.sessions import BrowserSession
from core.web.api.ledger import Changing, Reading
from core.web.api.parameters import Limit
from core.web.callers import Caller

router = APIRouter(tags=["Tokens"])


@router.get("/sessions")
def listed(
    connection: Reading,
    caller: Caller,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="Only sessions with smaller ids.")] = None,
    limit: Limit = 50,
) -> list[BrowserSession]:
    """Return the browsers that are logged in, the newest first. For admins."""
    return sessions.listed(connection, caller, limit=limit, before=before)


@router.delete("/sessions/{session_id}", status_code=204)
def end(session_id: Annotated[int, Path(ge=1, lt=2**63)], connection: Changing, caller: Caller) -> None:
    """End a session, so that its browser must log in again. For admins."""
    sessions.end(connection, session_id, caller)
