"""The sessions of browsers that have logged in: lists them, and ends them before their time."""

from sqlalchemy import Connection

from core.errors import NotFound
from core.ledger import audit, tokens
from core.ledger.audit import Actor
from core.operations import access
from core.operations.json_shape import Instant, Shape

#: The most sessions in one list.
MOST = 1000


class BrowserSession(Shape):
    """A browser that is logged in."""

    id: int
    #: The person, or the name of the token with which the session began.
    name: str
    role: str
    plugins: list[str] | None
    queues: list[str] | None
    sees_arguments: bool
    created_at: Instant
    #: The maker of the token or of the link with which it began; ``oidc`` for a log-in at the provider.
    created_by: str
    expires_at: Instant
    #: The time of the last request, to the minute.
    used_at: Instant | None
    #: Whether it is the caller's own session.
    is_own: bool


def listed(
    connection: Connection, actor: Actor, *, limit: int = MOST, before: int | None = None
) -> list[BrowserSession]:
    """Return the sessions that are valid now, the newest first. With ``before``, only those with smaller ids.

    Raises Forbidden.
    """
    access.require(actor, "admin", "the list of sessions")
    access.check_unlimited(actor, "the list of sessions")
    own = actor.facts.get("session")
    rows = tokens.sessions(connection, limit=limit, before=before)
    return [BrowserSession.model_validate({**row._mapping, "is_own": row.id == own}) for row in rows]


def end(connection: Connection, session_id: int, actor: Actor) -> None:
    """End a session when the caller's transaction commits. Raises Forbidden or NotFound."""
    access.check(actor, "sessions end")
    access.check_unlimited(actor, "a session")
    name = tokens.end_session_of(connection, session_id)
    if name is None:
        raise NotFound(f"there is no session {session_id}: it is mistyped, or has ended")
    audit.record(connection, actor, "sessions end", name, ended=session_id)
