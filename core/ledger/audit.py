"""The audit: a row for each action of a person, written in the same transaction as the action itself.

A row has only names and counts: the values of arguments, keys and errors may be personal data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, text
from sqlalchemy.orm import Session

from core.ledger.models import AuditRow

AUDIT = AuditRow.__table__

#: The actions that are recorded. They have the names of the commands; ``call`` is a route of a plugin.
Action = Literal[
    "run", "retry", "drop", "cancel", "pause", "resume", "orphans adopt", "schedules add", "schedules remove",
    "schedules pause", "schedules resume", "schedules sync", "schedules clean", "db upgrade", "db drop-plugin",
    "tokens create", "tokens revoke", "tokens link", "sessions end", "orphans clean", "operations cancel", "call",
]  # fmt: skip

RECORD = text("""
    INSERT INTO rota_audit (actor, via, action, target, details)
    VALUES (:actor, :via, :action, :target, CAST(:details AS jsonb)) RETURNING id
""")
AMEND = text("UPDATE rota_audit SET details = details || CAST(:details AS jsonb) WHERE id = :id")


#: A viewer may only look. An operator may also act on runs, pauses and schedules. An admin may do everything.
Role = Literal["viewer", "operator", "admin"]


@dataclass(frozen=True, slots=True)
class Actor:
    """The person who acts, the interface that they use, such as ``cli``, and their rights.

    A command line that has DATABASE_URL may do everything. ``core/operations/access.py`` checks the rights.
    """

    name: str
    via: str
    role: Role = "admin"
    #: The plugins and the queues whose jobs they may see and act on; None for all.
    plugins: frozenset[str] | None = None
    queues: frozenset[str] | None = None
    #: Whether they see the arguments of runs that are not secret.
    sees_arguments: bool = True
    #: Details to add to each entry of the audit, such as the token and the reason.
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


def record(on: Session | Connection, actor: Actor, action: Action, target: str, **details: Any) -> int:
    """Record ``actor``'s action in the caller's transaction. Return the entry's id."""
    parameters = {"actor": actor.name, "via": actor.via, "action": action, "target": target}
    return int(on.execute(RECORD, {**parameters, "details": as_json({**actor.facts, **details})}).scalar_one())


def amend(connection: Connection, entry: int, **details: Any) -> None:
    """Add details to an entry. This is for an action that takes several transactions."""
    connection.execute(AMEND, {"id": entry, "details": as_json(details)})


def as_json(details: dict[str, Any]) -> str:
    """Return ``details`` as JSON, without the details that are None."""
    return json.dumps({name: value for name, value in details.items() if value is not None}, default=str)


def newest(
    connection: Connection,
    *,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    limit: int,
    before: int | None = None,
) -> list[Row[Any]]:
    """Return the newest entries, the newest first. With ``before``, return only entries with smaller ids than this."""
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AUDIT.c.id < before)
    if actor is not None:
        query = query.where(AUDIT.c.actor == actor)
    if action is not None:
        query = query.where(AUDIT.c.action == action)
    if since is not None:
        query = query.where(AUDIT.c.at >= since)
    return list(connection.execute(query).all())
