"""Health checks, and checks of tables, without a command line. Everything that they check is an argument."""

import os

import pytest

from core import job
from core.jobs.registry import Plugin, Registry
from core.operations import connections, health, tables
from core.operations.health import Surroundings
from core.plugins import loading

ADVICE = "ask the people of the database"


@job("close-day", queue="billing")
def close_day(run):
    pass


@job("open-day", queue="billing")
def open_day(run):
    pass


def around(**changed):
    """Return the surroundings of a service, in which the variables ``changed`` have other values."""
    environment = {**os.environ, **changed}
    return Surroundings(
        environment, "its own", lambda configured: connections.ledger(configured, "rota-tests", 5), ADVICE
    )


def look(registry, surroundings, **asked):
    return list(health.everything(registry, surroundings, **{"live": False, "here": None, **asked}))


def wrong(found):
    return [answer.name for answer in found if answer.outcome == "wrong"]


@pytest.fixture
def registry(use_jobs):
    return use_jobs(close_day)


def test_all_is_well_and_a_report_says_so(database, registry):
    found = look(registry, around())

    assert wrong(found) == []
    assert health.report(found).ok
    assert ("settings", "its own") in {(answer.name, answer.found) for answer in found}


def test_settings_that_are_wrong_end_it_since_nothing_else_can_be_asked(registry):
    found = look(registry, around(DATABASE_URL=""))

    assert (wrong(found), found[-1].name) == (["settings"], "settings")
    assert not health.report(found).ok


def test_the_advice_of_who_asks_stands_beside_a_server_that_does_not_answer(registry):
    nowhere = around(DATABASE_URL="postgresql://rota@127.0.0.1:1/rota", REDIS_URL="redis://127.0.0.1:1/0")

    found = {answer.name: answer for answer in look(registry, nowhere)}

    assert (found["PostgreSQL"].advice, found["Redis"].advice) == (ADVICE, ADVICE)


def test_for_looking_neither_a_broken_plugin_nor_redis_is_wrong(database):
    registry = Registry((Plugin("billing", "rota-billing", "1.0", error="it does not import"),))

    looking = look(registry, around(REDIS_URL="redis://127.0.0.1:1/0"), purpose="looking")
    working = look(registry, around(REDIS_URL="redis://127.0.0.1:1/0"), purpose="working")

    assert (wrong(looking), wrong(working)) == ([], ["plugin billing", "Redis"])


def test_processes_matter_where_they_are_asked_for(database, registry):
    assert "workers on billing" in wrong(look(registry, around(), live=True))
    assert wrong(look(registry, around(), here="worker")) == ["worker here"]


def test_tables_are_told_plugin_by_plugin(database):
    found = tables.status(database, loading.current())

    assert found[0].plugin == "core"
    assert all(each.is_current and each.head for each in found)


def test_jobs_that_runs_wait_for_and_no_process_has_are_named(database, registry, ledger, start_process):
    start_process(jobs=[close_day, open_day], plugin="books").expire(database)
    for name in ("close-day", "open-day", "next-year"):
        ledger.request(name)
    assert not [answer for answer in look(registry, around()) if answer.name.startswith("runs of ")]

    start_process(jobs=[close_day])
    found = {answer.name: answer for answer in look(registry, around()) if answer.name.startswith("runs of ")}

    assert set(found) == {"runs of open-day", "runs of next-year"}
    assert "no live process has this job of books" in found["runs of open-day"].found
    assert "no release that ran here has had the job yet" in found["runs of next-year"].found
    assert {answer.outcome for answer in found.values()} == {"info"}
