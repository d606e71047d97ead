"""Asks in one statement whether the dispatcher has work. An idle pass executes only this statement."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from core.ledger import due, pauses, slots
from core.ledger.deadlines import HAS_EXPIRED
from core.ledger.models import IS_BEHIND, IS_LIMITED
from core.ledger.prepared import Prepared

#: Parameters: the delay after which a slot is late, and the time after which a sent run that no process has claimed is
#: overdue.
ASK = Prepared(
    "rota_agenda",
    ("interval", "interval"),
    f"""
    SELECT clock_timestamp(),
        {due.IS_ANY_DUE}
        OR EXISTS (SELECT 1 FROM rota_runs WHERE {slots.IS_WAITING} AND slot < statement_timestamp() - $1)
        OR EXISTS (SELECT 1 FROM ({due.SENT_LANES}) AS lane WHERE first_at < statement_timestamp() - $2)
        OR EXISTS (SELECT 1 FROM rota_runs WHERE {IS_BEHIND})
        OR EXISTS (SELECT 1 FROM rota_runs WHERE {IS_LIMITED})
        OR EXISTS (SELECT 1 FROM rota_runs WHERE {HAS_EXPIRED}),
        EXISTS (SELECT 1 FROM rota_pauses WHERE {pauses.IS_ACTIVE})
    """,  # noqa: S608 — constants
)


@dataclass(frozen=True, slots=True)
class Agenda:
    """The answer that a dispatcher gets at the beginning of a pass."""

    #: The time of the database's clock.
    now: datetime
    #: Whether a run must be sent, sent again, woken or recorded as missed.
    has_work: bool
    #: Whether a pause is active now.
    is_paused: bool


def ask(connection: Connection, tolerance_seconds: float, overdue_seconds: float) -> Agenda:
    """Return whether there is work, such as runs that are due, slots that are later than ``tolerance_seconds``, or runs
    that were sent ``overdue_seconds`` ago and not claimed.
    """
    ((now, has_work, is_paused),) = ASK.rows(
        connection, f"{tolerance_seconds} seconds", f"{overdue_seconds} seconds"
    )  # fmt: skip
    return Agenda(now, has_work, is_paused)
