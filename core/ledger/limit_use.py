"""The use of limits, for people: how many runs are at work and are waiting, and which limits are closed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from core.ledger.limits import STANDING
from core.ledger.models import IS_LIMITED
from core.ledger.room import NAMED

#: The columns of ``Use`` that the part ``standing`` returns.
USE = f"""
    SELECT name, declared, at_once, most, per_second, cardinality(holders) AS running, tokens, closed_until, (
            SELECT reason FROM rota_closings AS closing
            WHERE closing.name = standing.name AND closing.until = closed_until LIMIT 1) AS closed_reason, (
            SELECT count(*) FROM rota_runs WHERE {IS_LIMITED} AND waits_for = standing.name) AS waiting
    FROM standing
"""  # noqa: S608 — constants

#: Every limit that is declared, used or closed, or that a run waits for. The query reads one index entry for each name
#: that has waiting runs.
ALL = text(f"""
    WITH RECURSIVE {NAMED}, asked AS MATERIALIZED (
        SELECT name, coalesce(array_agg(declared) FILTER (WHERE declared IS NOT NULL), '{{}}') AS declared FROM (
            SELECT name, declared FROM rota_limits
            UNION SELECT named.waits_for, first.declared FROM named CROSS JOIN LATERAL (
                SELECT limits_declared[array_position(limits, waits_for)] AS declared FROM rota_runs
                WHERE {IS_LIMITED} AND waits_for = named.waits_for LIMIT 1) AS first
            UNION SELECT name, NULL FROM rota_closings WHERE until > statement_timestamp()
            UNION SELECT known.name, known.name
                FROM rota_processes AS process JOIN rota_releases ON fingerprint = process.release,
                     jsonb_object_keys(limits) AS known (name)
                WHERE expires_at > statement_timestamp()) AS any_name
        GROUP BY name
    ), {STANDING}
    SELECT * FROM ({USE}) AS use ORDER BY waiting DESC, running DESC, name LIMIT :most
""")  # noqa: S608 — constants

OF_RUN = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT waits_for AS name, ARRAY[limits_declared[array_position(limits, waits_for)]] AS declared
        FROM rota_runs WHERE id = :run_id AND waits_for IS NOT NULL
    ), {STANDING}
    {USE}
""")  # noqa: S608 — constants

WAITING = text(f"""
    SELECT limits_declared[array_position(limits, waits_for)] AS declared, count(*) AS runs
    FROM rota_runs WHERE {IS_LIMITED} GROUP BY 1
""")  # noqa: S608 — constants

DECLARED_EVER = text("""
    SELECT DISTINCT name FROM rota_releases, jsonb_object_keys(limits) AS known (name) ORDER BY name
""")

#: The limits for which live releases have different numbers, each with these numbers.
CONTRADICTORY = text("""
    SELECT name, array_agg(numbers ORDER BY numbers) AS numbers FROM (
        SELECT DISTINCT known.name, numbers FROM rota_processes AS process
        JOIN rota_releases ON fingerprint = process.release, jsonb_each(limits) AS known (name, numbers)
        WHERE expires_at > statement_timestamp()) AS declared
    GROUP BY name HAVING count(*) > 1 ORDER BY name
""")


@dataclass(frozen=True, slots=True)
class Use:
    """The use of one limit now."""

    name: str
    #: The declarations that the limit's name was filled from.
    declared: list[str]
    at_once: int | None
    most: float | None
    per_second: float | None
    running: int
    tokens: float | None
    closed_until: datetime | None
    closed_reason: str | None
    waiting: int


def _use(row: Any) -> Use:
    return Use(**row._mapping)


def everything(connection: Connection, most: int) -> list[Use]:
    """Return up to ``most`` limits. The limits with the most waiting runs come first."""
    return [_use(row) for row in connection.execute(ALL, {"most": most, "after": ""})]


def of_run(connection: Connection, run_id: int) -> Use | None:
    """Return the limit that a run waits for."""
    row = connection.execute(OF_RUN, {"run_id": run_id}).one_or_none()
    return _use(row) if row is not None else None


def declared_ever(connection: Connection) -> list[str]:
    """Return the limits that any recorded release declares."""
    return list(connection.execute(DECLARED_EVER).scalars())


def contradictory(connection: Connection) -> dict[str, list[dict[str, float]]]:
    """Return the limits for which live releases have different numbers, each with these numbers."""
    return {row.name: row.numbers for row in connection.execute(CONTRADICTORY)}


def waiting(connection: Connection) -> dict[str, int]:
    """Return how many runs wait for the limits of each declaration.

    Filled names are left out, since they may be personal data.
    """
    return {row.declared: row.runs for row in connection.execute(WAITING) if row.declared is not None}
