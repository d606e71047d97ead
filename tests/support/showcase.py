"""A service with something wrong, for tests in a browser and for pictures: schedules of several plugins, and the ledger
of their last days.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from core import Keyed, Run, cron, every, job
from core.jobs.registry import Plugin, Registry
from core.ledger import history, releases

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LONDON = "Europe/London"
INSERT = text("""
    INSERT INTO rota_runs (job, queue, key, slot, state, reason, error, attempt, failures, queued_at, due_at,
                           started_at, finished_at, worker)
    SELECT job, queue, key, slot, state, reason, error, attempt, failures, slot, slot, started_at, finished_at,
           CASE WHEN started_at IS NOT NULL THEN 'mk-worker-1:4120' END
    FROM jsonb_to_recordset(CAST(:runs AS jsonb)) AS run (
        job text, queue text, key text, slot timestamptz, state text, reason text, error text, attempt int,
        failures int, started_at timestamptz, finished_at timestamptz)
    RETURNING id
""")
ERROR = 'UndefinedColumn: column "ends_at" does not exist'


def made(name: str, queue: str, schedule: Any = None, **options: Any) -> Any:
    """A job."""

    def work(run: Run) -> None:
        """Do nothing."""

    return job(name, queue=queue, schedule=schedule, **options)(work)


COUPONS = made("check-expired-coupons", "expiry", every(minutes=15))
POINTS = made("check-expired-points", "expiry", cron("10 * * * *", tz=LONDON))
CLEANUP = made("cleanup-expired-time-slots", "maintenance", cron("40 3 * * *", tz=LONDON))
BACKUP = made("check-backup", "maintenance", cron("0 3 * * *", tz=LONDON))
STATISTICS = made("daily-statistics", "maintenance", cron("30 2 * * *", tz=LONDON))
SESSIONS = made("clean-sessions", "maintenance", every(hours=1))
CHATS = made("auto-end-timeout-chats", "customer_service", every(seconds=30))
QUEUE = made("process-customer-service-queue", "customer_service", every(minutes=1))
POLL = made("poll-mailbox", "mail", keyed=Keyed(least=MINUTE, most=DAY, default=every(minutes=5)))
EMAIL = made("process-email", "mail")

PLUGINS = {
    "expiry": (COUPONS, POINTS),
    "maintenance": (CLEANUP, BACKUP, STATISTICS, SESSIONS),
    "customer_service": (CHATS, QUEUE),
    "mail": (POLL, EMAIL),
}


def registry() -> Registry:
    """The plugins and jobs of the service."""
    return Registry(tuple(Plugin(name, "", "", jobs) for name, jobs in PLUGINS.items()))


def ran(job: Any, slot: datetime, state: str = "succeeded", **facts: Any) -> dict[str, Any]:
    """A slot on record."""
    has_started = state in {"succeeded", "dead", "running", "retrying"}
    late = facts.pop("late", timedelta(seconds=1))
    given = {
        "job": job.name,
        "queue": job.queue,
        "key": "",
        "slot": slot,
        "state": state,
        "attempt": int(has_started),
        "failures": 0,
        "started_at": slot + late if has_started else None,
        "finished_at": None if state in {"running", "retrying", "queued"} else slot + late + timedelta(seconds=2),
        **facts,
    }
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}


def of_last_days(now: datetime) -> Iterator[dict[str, Any]]:
    """What became of the slots."""
    began = now - 85 * MINUTE
    for slot in COUPONS.schedule.between(now - 7 * DAY, now):
        if slot > began:
            yield ran(COUPONS, slot, "dead", reason="retries", error=ERROR, attempt=4, failures=4)
        elif now - 19 * HOUR < slot < now - 18.5 * HOUR:
            yield ran(COUPONS, slot, "skipped", reason="paused")
        else:
            yield ran(COUPONS, slot)
    for slot in POINTS.schedule.between(now - 7 * DAY, now):
        is_later = now - 12 * HOUR < slot < now - 10 * HOUR
        yield ran(POINTS, slot, attempt=2 if is_later else 1, failures=int(is_later))
    for slot in SESSIONS.schedule.between(now - 7 * DAY, now):
        yield ran(SESSIONS, slot, late=9 * MINUTE if now - 3 * DAY < slot < now - 2.9 * DAY else timedelta(seconds=1))
    for each in (CLEANUP, STATISTICS):
        for slot in each.schedule.between(now - 80 * DAY, now):
            yield ran(each, slot)
    for slot in BACKUP.schedule.between(now - 80 * DAY, now):
        is_last = BACKUP.schedule.next_after(slot) > now
        yield ran(BACKUP, slot, "missed", reason="grace") if is_last else ran(BACKUP, slot)
    for slot in QUEUE.schedule.between(now - DAY, now):
        lost = now - 13 * HOUR < slot < now - 12.8 * HOUR
        yield ran(QUEUE, slot, "missed", reason="superseded") if lost else ran(QUEUE, slot)
    for slot in CHATS.schedule.between(now - DAY, now):
        was_full = now - 8 * HOUR < slot < now - 7.9 * HOUR
        yield ran(CHATS, slot, late=MINUTE if was_full else MINUTE / 60)


def fill(engine: Engine, found: Registry) -> datetime:
    """Write the ledger of the last days. Return the time of its last entry."""

    with engine.begin() as connection:
        now = history.now(connection)
        runs = list(of_last_days(now))
        for start in range(0, len(runs), 5000):
            connection.execute(INSERT, {"runs": json.dumps(runs[start : start + 5000])})
        releases.record(connection, releases.of(found))
        connection.execute(text("UPDATE rota_releases SET first_seen_at = :at"), {"at": now - 90 * DAY})
        account(connection, found, now)
        keys(connection, now)
    return now


def account(connection: Connection, found: Registry, now: datetime) -> None:
    """Let the slots be accounted for until now."""
    values = [{"job": each.name, "spec": str(each.schedule), "at": now} for each in found.scheduled()]
    connection.execute(
        text("INSERT INTO rota_schedules (job, spec, accounted_until) VALUES (:job, :spec, :at)"), values
    )


def keys(connection: Connection, now: datetime) -> None:
    """Give mailboxes schedules, of which one is paused."""
    connection.execute(
        text("""
            INSERT INTO rota_key_schedules (job, key, plugin, spec, every_seconds, phase, is_seen, since, changed_by)
            SELECT 'poll-mailbox', 'mailbox-' || n, 'mail', 'every 5m', 300, n, true, :since, 'ann'
            FROM generate_series(1, 40) AS n"""),
        {"since": now - 10 * DAY},
    )
    connection.execute(
        text("""
            INSERT INTO rota_runs (job, queue, key, slot, state, attempt, queued_at, due_at, started_at, finished_at)
            SELECT 'poll-mailbox', 'mail', key, slot, 'succeeded', 1, slot, slot, slot, slot + interval '1 second'
            FROM rota_key_schedules, generate_series(1, 24 * 12) AS n,
                 LATERAL (SELECT date_trunc('hour', CAST(:now AS timestamptz)) - n * interval '5 minutes'
                                 + phase * interval '1 second') AS due (slot)
            WHERE phase <= 4"""),
        {"now": now},
    )
    connection.execute(
        text("""
            INSERT INTO rota_gaps (job, began_at, ended_at, reason, slots)
            VALUES ('poll-mailbox', :began, :ended, 'outage', 480)"""),
        {"began": now - 13 * HOUR, "ended": now - 12.8 * HOUR},
    )
    connection.execute(
        text("""
            UPDATE rota_key_schedules SET paused_at = :at, paused_until = 'infinity', paused_by = 'ann',
                   pause_reason = 'the password was refused' WHERE key = 'mailbox-17'"""),
        {"at": now - 4 * HOUR},
    )
    connection.execute(
        text("""
            INSERT INTO rota_pauses (scope, paused_by, reason, paused_at)
            VALUES ('job:cleanup-expired-time-slots', 'ben', 'the retention is under review', :at)"""),
        {"at": now - 5 * HOUR},
    )
