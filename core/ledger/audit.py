"""The audit: who did what by hand. Written in the transaction of what it tells of, so that neither is there alone.

Values of arguments, keys and errors may be personal data and have no place here: names and counts only.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, text
from sqlalchemy.orm import Session

from core.ledger.models import AuditRow

AUDIT = AuditRow.__table__

#: What is written down, as the commands are called.
Action = Literal["run", "retry", "drop", "pause", "resume", "orphans adopt", "db upgrade", "db drop-plugin"]

RECORD = text("""
    INSERT INTO rota_audit (actor, via, action, target, details)
    VALUES (:actor, :via, :action, :target, CAST(:details AS jsonb)) RETURNING id
""")
AMEND = text("UPDATE rota_audit SET details = details || CAST(:details AS jsonb) WHERE id = :id")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something by hand, and by which way, such as ``cli``."""

    name: str
    via: str


def record(on: Session | Connection, actor: Actor, action: Action, target: str, **details: Any) -> int:
    """Write down, in the caller's transaction, what ``actor`` does in it; return the entry's id."""
    parameters = {"actor": actor.name, "via": actor.via, "action": action, "target": target}
    return int(on.execute(RECORD, {**parameters, "details": as_json(details)}).scalar_one())


def amend(connection: Connection, entry: int, **details: Any) -> None:
    """Bring an entry up to date while what it tells of goes on, transaction by transaction."""
    connection.execute(AMEND, {"id": entry, "details": as_json(details)})


def as_json(details: dict[str, Any]) -> str:
    """``details`` without what is not given."""
    return json.dumps({name: value for name, value in details.items() if value is not None}, default=str)


def newest(
    connection: Connection, *, actor: str | None, action: str | None, since: datetime | None, limit: int
) -> list[Row[Any]]:
    """The newest entries, newest first."""
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    if actor is not None:
        query = query.where(AUDIT.c.actor == actor)
    if action is not None:
        query = query.where(AUDIT.c.action == action)
    if since is not None:
        query = query.where(AUDIT.c.at >= since)
    return list(connection.execute(query).all())
