"""``rota operations`` and ``rota orphans clean`` against a real ledger and a real Redis."""

import json

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy.orm import Session

from core import database as databases
from core import job, settings
from core.cli import confirmation, main
from core.jobs.registry import Plugin, Registry
from core.ledger import identity, releases
from core.ledger.audit import Actor
from core.ledger.carrier import OutgoingRun
from core.operations import carrying_out, plans
from core.operations.plans import Wanted
from core.operations.selection import Selection
from core.plugins import loading
from core.transport.messages import run_message
from core.transport.redis import Queues, ownership
from core.upkeep import carry_out_operation

ANN = Actor("ann", "http", "operator")
AT = "2026-01-01T00:00Z"


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def registry(environment, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plugins = (Plugin("tests", "", "", (work,)), Plugin("core", "", "", (carry_out_operation,)))
    with loading.using(Registry(plugins)) as registry:
        with databases.autocommit(database) as connection:
            releases.record(connection, releases.of(registry))
        yield registry


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, **options)


@pytest.fixture
def begun(database, registry, ledger):
    """Return the id of a running operation on three dead runs, and the ids of the runs. The first run was changed after
    the operation was planned.
    """
    ids = [ledger.request("work", state="dead", finished_at=AT) for _ in range(3)]
    with Session(database) as session, session.begin():
        wanted = Wanted("retry", Selection(job="work"), rate=2)
        plan = plans.make(session.connection(), registry, settings.load(), wanted, ANN)
        plans.execute(session, plan.id, ANN, digest=plan.digest)
    ledger.do("UPDATE rota_runs SET reason = 'dropped' WHERE id = :id", id=ids[0])
    with Session(database) as session, session.begin():
        carrying_out.next_batch(OneSession(session), registry, settings.load(), plan.id)
    return plan.id, ids


def test_a_list_that_is_cut_says_how_many_more_there_are_and_how_to_see_them(rota, database, registry, ledger):
    ids = [ledger.request("work", state="dead", finished_at=AT) for _ in range(23)]
    with Session(database) as session, session.begin():
        plan = plans.make(session.connection(), registry, settings.load(), Wanted("retry", Selection(job="work")), ANN)
        plans.execute(session, plan.id, ANN, digest=plan.digest)
    ledger.do("UPDATE rota_runs SET reason = 'dropped'")
    with Session(database) as session, session.begin():
        carrying_out.next_batch(OneSession(session), registry, settings.load(), plan.id)

    shown = rota("operations", "show", str(plan.id)).output.splitlines()
    every = rota("operations", "show", str(plan.id), "--all").output.splitlines()

    assert shown[-1] == f"  and 3 more: rota operations show {plan.id} --all"
    assert len([line for line in shown if line.startswith("  ")]) == 21
    assert [line.split()[0] for line in every[-23:]] == [str(each) for each in ids]


class OneSession:
    """A run that has only a session."""

    def __init__(self, session):
        self.session = session


def test_operations_are_listed_shown_and_cancelled(rota, begun, ledger):
    operation, ids = begun

    (listed,) = json.loads(rota("operations", "--json").output)
    assert (listed["id"], listed["state"], listed["changed"], listed["remaining"]) == (operation, "running", 1, 1)
    assert "retry" in rota("operations").output
    shown = rota("operations", "show", str(operation)).output
    assert "retry 3: running, 1 changed, 1 remaining" in shown
    assert f"  {ids[0]} has changed, and is dead (dropped)" in shown
    assert json.loads(rota("operations", "show", str(operation), "--json").output) == listed

    assert rota("operations", "cancel", str(operation), "--by", "ben").output == "cancelled after 1 of 3\n"
    assert "ended: by ben" in rota("operations", "show", str(operation)).output
    (entry,) = ledger.rows("SELECT * FROM rota_audit WHERE action = 'operations cancel'")
    assert (entry.actor, entry.via, entry.details) == ("ben", "cli", {"operation": operation, "runs": 1})


def test_an_operation_that_does_not_exist_is_refused(rota):
    assert rota("operations").output == "no operations\n"
    answer = rota("operations", "show", "4711")
    assert (answer.exit_code, "there is no plan 4711" in answer.output) == (1, True)


@pytest.fixture
def box(redis_url, database, ledger):
    """Yield a client of a Redis that has an old message of an ended run."""
    client = redis.Redis.from_url(redis_url)
    with database.connect() as connection:
        ownership.claim(client, identity.of(connection))
    run_id = ledger.request("work", state="succeeded", finished_at=AT)
    old = run_message(OutgoingRun(run_id, "work", "default")).copy(message_timestamp=1_700_000_000_000)
    Queues(client).enqueue_many([old])
    yield client
    client.close()


def test_a_clean_up_asks_first_and_is_carried_out_by_a_worker(rota, box, ledger, monkeypatch, database, registry):
    monkeypatch.setattr(confirmation, "is_answerable", lambda: True)
    refused = rota("orphans", "clean", input="n\n")
    assert refused.exit_code == 1
    assert ledger.runs("carry-out-operation") == []

    done = json.loads(rota("orphans", "clean", "--yes", "--by", "ben", "--json").output)

    assert (done["state"], done["total"], done["confirmed_by"]) == ("running", 1, "ben")
    assert box.hlen("dramatiq:default.msgs") == 1
    for _ in range(2):
        with Session(database) as session, session.begin():
            carrying_out.next_batch(OneSession(session), registry, settings.load(), done["id"])
    assert box.keys("dramatiq:default*") == []
    assert json.loads(rota("operations", "show", str(done["id"]), "--json").output)["state"] == "done"
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.action, entry.target) == ("ben", "orphans clean", "run ended")


def test_a_full_clean_up_asks_for_its_phrase(rota, box, ledger, monkeypatch):
    monkeypatch.setattr(confirmation, "is_answerable", lambda: True)

    assert rota("orphans", "clean", "--full", input="y\n").exit_code == 1
    assert rota("orphans", "clean", "--full", input="remove 1 leftovers\n").exit_code == 0
    assert len(ledger.runs("carry-out-operation")) == 1


def test_without_leftovers_there_is_nothing_to_clean(rota, box):
    box.delete("dramatiq:default", "dramatiq:default.msgs")
    answer = rota("orphans", "clean", "--yes")
    assert (answer.exit_code, "no leftovers older than 24 hours" in answer.output) == (1, True)
