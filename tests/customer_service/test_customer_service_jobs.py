"""The plugin in Rota: its jobs are registered as the catalogue says, run, and are triggered through the ledger."""

from contextlib import closing
from datetime import timedelta
from importlib.metadata import EntryPoint

import pytest
from customer_service_world import NOON
from sqlalchemy import text

import core
from core import Run, cron, every
from core.middleware.db_session import Work
from core.plugins import loading
from plugins.customer_service import CustomerService, join_queue, triggers

FREQUENT = (every(seconds=30), 3, timedelta(seconds=30))
DAILY = (cron("0 3 * * *", tz="Europe/London"), 2, timedelta(seconds=300))
CATALOGUE = {
    "process-customer-service-queue": FREQUENT,
    "auto-end-timeout-chats": FREQUENT,
    "send-timeout-warnings": FREQUENT,
    "cleanup-long-inactive-chats": DAILY,
}


@pytest.fixture(scope="module")
def registry():
    return loading.load([EntryPoint("customer_service", "plugins.customer_service:CustomerService", "rota.plugins")])


@pytest.fixture
def run(engine, registry):
    """Return a function that runs a job of that name as a worker does, without a lease."""

    def run_job(name, now):
        work = Work(engine)
        with closing(work):
            result = registry.job(name)(Run(1, name, "", None, 1, now, {}, work))
            work.session.commit()
            return result

    return run_job


def test_the_jobs_are_those_of_the_catalogue(registry):
    assert not list(registry.broken())
    ours = {job.name: job for job in registry if job.queue == "customer_service"}

    assert {name: (job.schedule, job.max_retries, job.retry_delay) for name, job in ours.items()} == CATALOGUE


def test_the_limits_are_those_of_the_catalogue(registry):
    for name in CATALOGUE:
        job = registry.job(name)
        assert (job.soft_limit, job.hard_limit) == (timedelta(minutes=25), timedelta(minutes=30))


def test_only_the_assignment_may_overlap_because_a_trigger_must_not_be_dropped(registry):
    assert [name for name in sorted(CATALOGUE) if registry.job(name).overlap == "allow"] == [triggers.ASSIGNMENT_JOB]


def test_the_migrations_are_where_the_plugin_says():
    assert [path.name for path in CustomerService().register_migrations().glob("0*.py")] == ["0001_queue_and_chats.py"]


def test_a_user_is_served_from_joining_to_the_archive_by_the_jobs_alone(world, run):
    world.agent("zoe")
    world.waiting("ann")

    none = {"left": 0, "broken": 0}
    assert run("process-customer-service-queue", NOON) == {"assigned": 1, "broken": 0}
    assert run("send-timeout-warnings", NOON + timedelta(seconds=60)) == {"warned": 1, **none}
    assert run("auto-end-timeout-chats", NOON + timedelta(seconds=120)) == {"ended": 1, "warned": 0, **none}
    assert run("cleanup-long-inactive-chats", NOON + timedelta(days=30)) == {
        "archived": 1,
        "ended": 0,
        "left_entries_removed": 0,
        **none,
    }


@pytest.fixture
def ledger_session(session, registry, monkeypatch):
    """Yield a session with the real ``enqueue``."""
    monkeypatch.setattr(loading, "current", lambda: registry)
    monkeypatch.setattr(triggers, "enqueue", core.enqueue)
    return session


def triggered(session):
    return session.scalars(text("SELECT job FROM rota_runs WHERE state = 'queued' AND slot IS NULL")).all()


def test_joining_puts_a_run_into_the_ledger_with_the_same_commit(ledger_session):
    join_queue(ledger_session, "ann", NOON)
    ledger_session.commit()

    assert triggered(ledger_session) == ["process-customer-service-queue"]


def test_joining_that_rolls_back_puts_no_run_into_the_ledger(ledger_session):
    join_queue(ledger_session, "ann", NOON)
    ledger_session.rollback()

    assert triggered(ledger_session) == []
