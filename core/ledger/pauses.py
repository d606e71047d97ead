"""Pauses: periods in which the jobs of a scope are not started.

A slot that comes due in a pause is skipped. Requested runs and retries wait unsent until the pause ends: at its
``until``, or when a person ends it. Runs that have started continue. A scope is ``everything``, or a plugin, a queue or
a job by name. ``Registry.scopes`` returns the scopes of each job.

Rows of ended pauses are kept as long as runs, since slots of an outage are judged by the time at which they came due.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from core.errors import PauseError

COLUMNS = "id, scope, reason, paused_by, paused_at, nullif(until, 'infinity')"
#: ``statement_timestamp()`` is stable, so PostgreSQL can use an index on ``until`` to skip the pauses that are over.
IS_ACTIVE = "until > statement_timestamp()"

ACTIVE = text(f"SELECT {COLUMNS} FROM rota_pauses WHERE {IS_ACTIVE} ORDER BY id")  # noqa: S608 — constants
NOT_OVER_AT = text(
    f"SELECT {COLUMNS} FROM rota_pauses WHERE until > :instant ORDER BY id"  # noqa: S608 — constants
)
#: This lock does not block readers, so a claim never waits for a person who begins or ends a pause.
ONE_WRITER = text("LOCK TABLE rota_pauses IN SHARE ROW EXCLUSIVE MODE")
BEGIN = text(f"""
    INSERT INTO rota_pauses (scope, reason, paused_by, until)
    VALUES (:scope, :reason, :by, coalesce(CAST(:until AS timestamptz), 'infinity')) RETURNING {COLUMNS}
""")  # noqa: S608 — constants
END = text(f"""
    UPDATE rota_pauses SET until = clock_timestamp() WHERE scope = :scope AND {IS_ACTIVE} RETURNING {COLUMNS}
""")  # noqa: S608 — constants


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause, active or over."""

    id: int
    scope: str
    reason: str | None
    paused_by: str
    paused_at: datetime
    #: The planned end of the pause; None if it has none.
    until: datetime | None

    def covers(self, instant: datetime) -> bool:
        """Return whether the pause was, or will be, active at ``instant``."""
        return self.paused_at <= instant and (self.until is None or instant < self.until)


def active(connection: Connection) -> list[Pause]:
    """Return the active pauses, the oldest first."""
    return _pauses(connection.execute(ACTIVE).all())


def not_over_at(connection: Connection, instant: datetime) -> list[Pause]:
    """Return the pauses that ended after ``instant`` or have not ended, the oldest first."""
    return _pauses(connection.execute(NOT_OVER_AT, {"instant": instant}).all())


def begin(connection: Connection, scope: str, *, by: str, reason: str | None, until: datetime | None) -> Pause:
    """Pause ``scope`` when the caller's transaction commits. Raises PauseError if the scope is paused already."""
    connection.execute(ONE_WRITER)
    for pause in of_scopes(active(connection), [scope]):
        raise PauseError(f"{scope} is paused already, by {pause.paused_by}; resume it first")
    row = connection.execute(BEGIN, {"scope": scope, "reason": reason, "by": by, "until": until}).one()
    return Pause(*row)


def end(connection: Connection, scope: str) -> Pause | None:
    """End the pause of ``scope`` when the caller's transaction commits. Return the pause, or None if there is none."""
    row = connection.execute(END, {"scope": scope}).one_or_none()
    return Pause(*row) if row else None


def of_scopes(pauses: Iterable[Pause], scopes: Collection[str]) -> list[Pause]:
    """Return which of ``pauses`` have one of ``scopes``."""
    return [pause for pause in pauses if pause.scope in scopes]


def held(pauses: Collection[Pause], scopes: Mapping[str, Collection[str]]) -> dict[str, datetime]:
    """Return, for each job of ``scopes`` that one of ``pauses`` covers, the time since which the job is paused."""
    if not pauses:
        return {}
    found = {job: of_scopes(pauses, own) for job, own in scopes.items()}
    return {job: min(pause.paused_at for pause in own) for job, own in found.items() if own}


def literal(scopes: Collection[str]) -> str:
    """Return ``scopes`` as a literal of a PostgreSQL array of text. Names of scopes need no quotes."""
    return f"{{{','.join(scopes)}}}"


def _pauses(rows: Iterable[Any]) -> list[Pause]:
    return [Pause(*row) for row in rows]
