"""Lists the entries of the audit. Each entry records one action of a person."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from core.ledger import audit
from core.operations.json_shape import Instant, Shape


class Entry(Shape):
    """One action of a person."""

    id: int
    at: Instant
    actor: str
    via: str
    action: str
    target: str
    details: dict[str, Any]


def newest(
    connection: Connection,
    *,
    actor: str | None,
    action: audit.Action | None,
    since: datetime | None,
    limit: int,
    before: int | None = None,
) -> list[Entry]:
    """Return the newest entries, the newest first."""
    found = audit.newest(connection, actor=actor, action=action, since=since, limit=limit, before=before)
    return [Entry.model_validate(entry) for entry in found]
