"""Checks that the schedule of a claimed slot still exists, and counts dead runs of a key for the back-off.

A schedule may be removed or paused just when the dispatcher inserts one of its slots. The transaction of the removal or
pause then does not see the slot, and cannot skip it. So a claimed slot is checked: if its schedule is paused, is gone,
or was removed and made again, the slot ends as skipped. Only slots of schedules made at run time are checked.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from core.jobs import grid
from core.jobs.grid import Shifted
from core.jobs.keyed import Keyed
from core.jobs.schedules import parse
from core.ledger import limits
from core.ledger.key_schedules import UNSCHEDULED
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.prepared import Prepared

PAUSED = "paused"

#: Ends a run as skipped if its schedule was removed or paused. The attempt of this claim is then not counted. A run
#: that had an earlier attempt continues. Parameters: the run, its token, the process.
CHECK = Prepared(
    "rota_check_schedule",
    ("bigint", "bigint", "bigint"),
    f"""
    WITH found AS MATERIALIZED (
        SELECT run.id, run.attempt, row.id AS schedule_id, row.spec, row.phase, row.stretch, row.failures,
               row.paused_until > clock_timestamp() AS is_paused
        FROM rota_runs AS run LEFT JOIN rota_key_schedules AS row
            ON row.job = run.job AND row.key = run.key AND row.id = run.schedule_id
        WHERE {LEASE_IS_GOOD}
    ), ended AS (
        UPDATE rota_runs AS run SET
            state = 'skipped', reason = CASE WHEN found.schedule_id IS NULL THEN '{UNSCHEDULED}' ELSE '{PAUSED}' END,
            attempt = run.attempt - 1, token = NULL, process_id = NULL, worker = NULL, started_at = NULL,
            finished_at = clock_timestamp()
        FROM found
        WHERE {LEASE_IS_GOOD} AND found.attempt = 1 AND (found.schedule_id IS NULL OR found.is_paused)
        RETURNING run.id, run.reason
    )
    SELECT ended.reason, found.spec, found.phase, found.stretch, found.failures
    FROM found LEFT JOIN ended ON ended.id = found.id
    """,  # noqa: S608 — constants
)

#: The schedule of a key, after a change that the dispatcher has not seen yet.
LATEST = text("SELECT coalesce(next_spec, spec) FROM rota_key_schedules WHERE job = :job AND key = :key")
#: The stretch grows from the ``after``-th dead run in a row, up to ``most``.
DIED = text("""
    WITH died AS MATERIALIZED (
        SELECT job, key, failures + 1 AS failures, least(greatest(failures + 2 - :after, 0), :most) AS stretch
        FROM rota_key_schedules WHERE job = :job AND key = :key AND coalesce(next_spec, spec) = :spec
        FOR NO KEY UPDATE
    )
    UPDATE rota_key_schedules AS row SET
        failures = died.failures, stretch = died.stretch, is_seen = is_seen AND row.stretch = died.stretch,
        version = version + CASE WHEN row.stretch = died.stretch THEN 0 ELSE 1 END
    FROM died WHERE row.job = died.job AND row.key = died.key
    RETURNING row.stretch
""")
SUCCEEDED = text("""
    UPDATE rota_key_schedules SET
        failures = 0, stretch = 0, is_seen = is_seen AND stretch = 0,
        version = version + CASE WHEN stretch = 0 THEN 0 ELSE 1 END
    WHERE job = :job AND key = :key AND (failures > 0 OR stretch > 0)
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """The schedule of a claimed slot, or the reason why the slot was skipped."""

    #: Why the slot was skipped, ``unscheduled`` or ``paused``; None if the slot may start.
    skipped: str | None
    #: The schedule; None if it is gone and the slot had an earlier attempt, or if this process cannot read it.
    schedule: Shifted | None
    #: Whether runs of the key have died, so that a success must be recorded.
    is_failing: bool


def check(connection: Connection, lease: Lease) -> Standing | None:
    """Skip a claimed slot if its schedule is gone or paused. Return None if the lease is lost."""
    rows = CHECK.rows(connection, lease.run_id, lease.token, lease.process_id)
    if not rows:
        return None
    standing = _standing(*rows[0])
    if standing.skipped is not None:
        limits.give_back(connection, lease)
    return standing


def _standing(skipped: str | None, spec: str | None, phase: int, stretch: int, failures: int) -> Standing:
    schedule = grid.grid(spec, phase, stretch) if spec is not None and grid.is_readable(spec) else None
    return Standing(skipped, schedule, is_failing=bool(failures or stretch))


def died(connection: Connection, job: str, key: str, keyed: Keyed) -> timedelta | None:
    """Count a dead run of a key.

    Return the time in which at most one slot of the key comes due now, or None if the key does not back off. If the
    schedule changes at this moment, the run is not counted.
    """
    spec = connection.execute(LATEST, {"job": job, "key": key}).scalar_one_or_none()
    if spec is None or not grid.is_readable(spec):
        return None
    schedule = parse(spec)
    values = {"job": job, "key": key, "spec": spec, "after": keyed.backoff_after}
    found = connection.execute(DIED, {**values, "most": keyed.longest_stretch(schedule)})
    stretch = found.scalar_one_or_none()
    return timedelta(seconds=grid.step(schedule) << stretch) if stretch else None


def succeeded(connection: Connection, job: str, key: str) -> None:
    """End the back-off of a key."""
    connection.execute(SUCCEEDED, {"job": job, "key": key})
