"""Reads what has changed in the ledger lately, for pages that are live. Nothing here is on the path of claims.

One statement reads the newest ends of runs, the runs at work and the newest runs, each from the end of an index, and a
digest of each small table. A run that has left the runs at work without an end, such as a run that is retried, is read
by its id. An action of a person can change old runs, which no index has in the order of their changes. It is found by
its entry in the audit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

#: The most runs of each kind that one look reads.
MOST = 200
#: A run is visible when its transaction commits, after runs with greater ids. So this many of the last ids are read
#: again.
LATE_IDS = 1000

#: A run's end is visible only some time after its ``finished_at``, when its transaction is committed.
LOOK = text("""
    SELECT 'ended' AS kind, id, job, state, '' AS digest FROM (
        SELECT id, job, state FROM rota_runs WHERE finished_at > statement_timestamp() - interval '20 seconds'
        ORDER BY finished_at DESC LIMIT :most) AS ended
    UNION ALL
    SELECT 'running', id, job, 'running', concat(attempt, ' ', progress) FROM (
        SELECT id, job, attempt, progress FROM rota_runs WHERE state = 'running'
        ORDER BY id + 0 DESC LIMIT :most) AS running  -- not by the primary key, since few runs are at work
    UNION ALL
    SELECT 'new', id, job, state, '' FROM (
        SELECT id, job, state FROM rota_runs WHERE id > :last - :late ORDER BY id DESC LIMIT :late + :most) AS fresh
    UNION ALL
    SELECT 'action', id, '', '', details ->> 'runs' FROM (
        SELECT id, action, details FROM rota_audit ORDER BY id DESC LIMIT :most) AS entries
    WHERE action IN ('retry', 'drop', 'cancel', 'orphans adopt', 'orphans clean')
    UNION ALL
    SELECT 'processes', 0, '', '', md5(coalesce(string_agg(concat(id, kind), ',' ORDER BY id), ''))
    FROM rota_processes
    UNION ALL
    SELECT 'pauses', 0, '', '', md5(coalesce(string_agg(concat(id, until), ',' ORDER BY id), ''))
    FROM rota_pauses WHERE until > statement_timestamp()
    UNION ALL
    SELECT 'operations', 0, '', '', md5(coalesce(string_agg(concat(id, state, position), ',' ORDER BY id), ''))
    FROM rota_operations WHERE state IN ('planned', 'running', 'stopped')
""")
NEWEST = text("SELECT coalesce(max(id), 0) FROM rota_runs")
OF_IDS = text("SELECT id, job, state FROM rota_runs WHERE id = ANY(:ids)")
#: The kinds of ``LOOK`` that are runs. A later kind says more of a run than an earlier one.
RUNS = ("new", "running", "ended")
#: The kinds of ``LOOK`` that are a digest of a table.
TABLES = ("processes", "pauses", "operations")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has found: runs with a digest of their state, and the digest of each small table."""

    runs: dict[int, tuple[str, str, str]]
    tables: dict[str, str]
    newest: int
    #: The newest actions of people that change runs, with the number of runs that each has changed so far.
    actions: dict[int, str | None] = field(default_factory=dict)


def newest(connection: Connection) -> int:
    """Return the id of the newest run."""
    return int(connection.execute(NEWEST).scalar_one())


def look(connection: Connection, last: int) -> Look:
    """Return what there is now. ``last`` is the newest run of the look before."""
    rows = connection.execute(LOOK, {"last": last, "most": MOST, "late": LATE_IDS}).all()
    runs = sorted((row for row in rows if row.kind in RUNS), key=lambda row: RUNS.index(row.kind))
    return Look(
        {row.id: (row.job, row.state, row.digest) for row in runs},
        {row.kind: row.digest for row in rows if row.kind in TABLES},
        max([last, *(row.id for row in runs)]),
        {row.id: row.digest for row in rows if row.kind == "action"},
    )


def of_ids(connection: Connection, ids: Iterable[int]) -> list[Row[Any]]:
    """Return the runs with these ids."""
    wanted = list(ids)[:MOST]
    return list(connection.execute(OF_IDS, {"ids": wanted}).all()) if wanted else []
