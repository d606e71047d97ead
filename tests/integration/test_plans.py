"""Plans: an operation changes only runs that are still as planned, and names the runs that it leaves out."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy.orm import Session

from core import database as databases
from core import job, settings
from core.errors import ConfirmationRequired, Forbidden, PlanError, SelectionError, UnknownPlan
from core.jobs.registry import Plugin, Registry
from core.ledger import plans as rows
from core.ledger import releases, retention
from core.ledger.audit import Actor
from core.operations import carrying_out, plans, tokens
from core.operations import tokens as credentials
from core.operations.plans import Wanted
from core.operations.selection import Selection
from core.plugins import loading
from core.upkeep import carry_out_operation, clean_redis
from tests.support.emitted import emitted

ANN = Actor("ann", "http", "operator")
ROOT = Actor("root", "http", "admin")
EVE = Actor("eve", "http", "viewer")
AT = "2026-01-01T00:00Z"


@job("work", queue="default")
def work(run):
    """Work."""


@job("other", queue="elsewhere")
def other(run):
    """Other work."""


@pytest.fixture(autouse=True)
def registry(environment, database):
    plugins = (
        Plugin("tests", "", "", (work,)),
        Plugin("others", "", "", (other,)),
        Plugin("core", "", "", (carry_out_operation, clean_redis)),
    )
    with loading.using(Registry(plugins)) as registry:
        with databases.autocommit(database) as connection:
            releases.record(connection, releases.of(registry))
        yield registry


@pytest.fixture
def dead(ledger):
    def make(count=1, job="work", **columns):
        return [ledger.request(job, state="dead", finished_at=AT, attempt=2, **columns) for _ in range(count)]

    return make


@pytest.fixture
def plan(database, registry):
    def make(action, actor=ANN, *, rate=None, why=None, full=False, **conditions):
        if "ids" in conditions:
            conditions["ids"] = tuple(conditions["ids"])
        with database.begin() as connection:
            wanted = Wanted(action, Selection(**conditions), rate, why, full)
            return plans.make(connection, registry, settings.load(), wanted, actor)

    return make


@pytest.fixture
def execute(database):
    def do(plan, actor=ANN, **confirmed):
        confirmed = {"digest": plan.digest, "typed": plan.confirm.phrase, **confirmed}
        with Session(database) as session, session.begin():
            return plans.execute(session, plan.id, actor, **confirmed)

    return do


class Attempt:
    """A run of the job that carries out operations, as the worker gives it to the function."""

    def __init__(self, session, ledger):
        self.session = session
        self.ledger = ledger
        self.commits = 0

    def checkpoint(self, _progress):
        self.session.commit()
        self.commits += 1

    def enqueue(self, job, *, key, args, delay):
        return SimpleNamespace(job=job, key=key, args=args, delay=delay) and 4711


@pytest.fixture
def carry_out(database, registry, ledger):
    def do(operation_id, *, batches=None):
        """Carry out the operation to its end, or only this many batches of it."""
        with Session(database) as session:
            attempt = Attempt(session, ledger)
            for _ in range(batches if batches is not None else 1000):
                step = carrying_out.next_batch(attempt, registry, settings.load(), operation_id)
                session.commit()
                if step is None:
                    break

    return do


@pytest.fixture
def look(database):
    def look(operation_id, actor=ANN):
        with database.connect() as connection:
            return plans.one(connection, operation_id, actor)

    return look


@pytest.fixture
def left_out(database):
    def left_out(operation_id, actor=ANN):
        with database.connect() as connection:
            found = plans.left_out(connection, operation_id, actor)
            return {each.item: each.reason for each in found.items}

    return left_out


def test_a_plan_shows_what_it_will_do_and_changes_nothing(plan, dead, ledger):
    ids = dead(12)
    dead(2, job="other", queue="elsewhere")
    ledger.request("work", state="dead", reason="dropped", finished_at=AT)
    before = ledger.rows("SELECT * FROM rota_runs ORDER BY id")

    shown = plan("retry", job="work", rate=2)

    assert (shown.total, shown.by_job, shown.least_seconds) == (12, {"work": 12}, 5.5)
    assert [run.id for run in shown.runs] == ids[:10]
    assert shown.digest.startswith("sha256:")
    assert shown.confirm.phrase is None
    assert not shown.is_expired
    assert ledger.rows("SELECT * FROM rota_runs ORDER BY id") == before
    assert ledger.rows("SELECT * FROM rota_audit") == []


def test_the_digest_is_that_of_the_action_the_options_and_the_runs(plan, dead, ledger):
    ids = dead(3)
    same = plan("retry", job="work").digest

    assert plan("retry", job="work").digest == same
    assert len({same, plan("drop", job="work").digest, plan("retry", job="work", rate=1).digest}) == 3
    ledger.do("UPDATE rota_runs SET attempt = 3 WHERE id = :id", id=ids[0])
    assert plan("retry", job="work").digest != same


@pytest.mark.parametrize("action", ["retry", "drop", "cancel", "adopt"])
def test_an_empty_selection_is_refused(plan, dead, action):
    dead()
    with pytest.raises(SelectionError, match="select runs by"):
        plan(action)


def test_a_selection_without_a_match_and_a_state_that_does_not_fit_are_refused(plan, dead, ledger):
    dead()
    with pytest.raises(SelectionError, match="no run that is dead matches"):
        plan("retry", job="other")
    with pytest.raises(SelectionError, match="not queued"):
        plan("retry", job="work", state="queued")
    assert ledger.rows("SELECT * FROM rota_operations") == []


def test_more_runs_than_a_plan_can_have_are_refused_with_the_number(plan, dead, monkeypatch, ledger):
    monkeypatch.setattr(rows, "MOST", 3)
    dead(4)
    with pytest.raises(SelectionError, match="more than 3 runs match"):
        plan("retry", job="work")
    assert plan("retry", job="work", limit=3).total == 3


def test_what_was_planned_is_done_and_the_audit_says_so(plan, execute, carry_out, look, dead, ledger, caplog):
    caplog.set_level("INFO")
    ids = dead(5)
    made = plan("retry", job="work", why="the bug is mended")
    started = execute(made)
    later = dead(1)

    carry_out(made.id)

    assert started.state == "running"
    done = look(made.id)
    assert (done.state, done.changed, done.left_out, done.remaining) == ("done", 5, {}, 0)
    assert {ledger.run(each).state for each in ids} == {"retrying"}
    assert ledger.run(later[0]).state == "dead"
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "http", "retry", "work")
    assert entry.details == {"job": "work", "operation": made.id, "planned": 5, "runs": 5, "why": "the bug is mended"}
    (run,) = ledger.runs("carry-out-operation")
    assert (run.key, run.args, run.queue) == (str(made.id), {"operation": made.id}, "rota")
    told = [*emitted(caplog, "operation.confirmed"), *emitted(caplog, "operation.finished")]
    assert [event.operation for event in told] == [made.id, made.id]


#: Changes of a dead run after an operation on it was planned. For each, the reason for which the operation leaves out
#: the run.
CHANGES = {
    "UPDATE rota_runs SET state = 'retrying', finished_at = NULL WHERE id = :id": "has changed, and is retrying",
    "UPDATE rota_runs SET reason = 'dropped' WHERE id = :id": "has changed, and is dead (dropped)",
    "UPDATE rota_runs SET finished_at = now() WHERE id = :id": "has changed, and is dead",
    "UPDATE rota_runs SET attempt = attempt + 1 WHERE id = :id": "has changed, and is dead",
    "UPDATE rota_runs SET token = 4711 WHERE id = :id": "has changed, and is dead",
    "DELETE FROM rota_runs WHERE id = :id": "is no longer in the ledger",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_left_its_state_falls_out_whether_it_came_back_or_not(
    plan, execute, carry_out, look, left_out, dead, ledger, change
):
    changed, kept = dead(2)
    made = plan("retry", job="work")
    execute(made)
    ledger.do(change, id=changed)

    carry_out(made.id)

    assert left_out(made.id) == {str(changed): CHANGES[change]}
    assert look(made.id).left_out == {CHANGES[change]: 1}
    assert look(made.id).changed == 1
    assert ledger.run(kept).state == "retrying"


def test_the_reason_for_which_a_run_waits_is_not_a_change(plan, execute, carry_out, look, ledger):
    run_id = ledger.request("work")
    made = plan("drop", job="work")
    execute(made)
    ledger.do("UPDATE rota_runs SET reason = 'paused', sent_at = now() WHERE id = :id", id=run_id)

    carry_out(made.id)

    assert look(made.id).changed == 1
    assert ledger.run(run_id).reason == "dropped"


def test_a_cancel_needs_its_phrase_and_ends_waiting_and_running_runs(
    plan, execute, carry_out, look, left_out, ledger, process, database
):
    waiting, running, twice = (ledger.request("work", key=str(each)) for each in range(3))
    process.lease(database, running)
    process.lease(database, twice)
    made = plan("cancel", job="work", why="wrong list")
    assert made.confirm.phrase == "cancel 3 runs"
    for typed in (None, "cancel 3", "CANCEL 3 RUNS"):
        with pytest.raises(ConfirmationRequired, match="cancel 3 runs"):
            execute(made, typed=typed)
    execute(made)
    ledger.do(
        "INSERT INTO rota_cancels (run_id, token, process_id, asked_by) VALUES (:id, 1, :process, 'ben')",
        id=twice,
        process=process.id,
    )

    carry_out(made.id)

    assert ledger.run(waiting).reason == "cancelled"
    assert "wrong list" in ledger.run(waiting).error
    assert ledger.value("SELECT reason FROM rota_cancels WHERE run_id = :id", id=running) == "wrong list"
    assert left_out(made.id) == {str(twice): "was cancelled already"}


def test_orphans_are_adopted(plan, execute, carry_out, look, ledger):
    columns = {"state": "orphaned", "reason": "absent", "finished_at": AT, "former_state": "queued"}
    run_id, gone = ledger.request("work", **columns), ledger.request("work", **columns)
    made = plan("adopt", job="work")
    execute(made)
    ledger.do("DELETE FROM rota_runs WHERE id = :id", id=gone)

    carry_out(made.id)

    assert (look(made.id).changed, ledger.run(run_id).state, ledger.run(run_id).reason) == (1, "queued", "adopted")


def test_a_job_that_the_worker_does_not_have_falls_out(plan, execute, carry_out, left_out, dead, registry, ledger):
    (run_id,) = dead(1, job="other", queue="elsewhere")
    made = plan("retry", job="other")
    execute(made)

    without = Registry((registry.plugins[0], registry.plugins[2]))
    with Session(ledger.engine) as session, session.begin():
        carrying_out.next_batch(Attempt(session, ledger), without, settings.load(), made.id)

    assert left_out(made.id) == {str(run_id): "the worker does not have the job other"}


def test_runs_that_were_dropped_already_are_not_counted_as_changed(plan, execute, carry_out, look, left_out, dead):
    ids = dead(2, reason="dropped")
    made = plan("drop", reason="dropped")
    execute(made)

    carry_out(made.id)

    assert (made.total, look(made.id).changed) == (2, 0)
    assert left_out(made.id) == {str(each): "was dropped already" for each in ids}


def test_what_a_later_release_stores_of_a_person_is_ignored(plan, execute, carry_out, look, dead, ledger):
    dead()
    made = plan("retry", job="work")
    execute(made)
    ledger.do("UPDATE rota_operations SET actor = actor || jsonb_build_object('later', 1)")

    carry_out(made.id)

    assert look(made.id).changed == 1


def test_a_wrong_digest_an_old_plan_and_an_unknown_one_are_refused(plan, execute, dead, ledger):
    dead()
    made = plan("retry", job="work")
    with pytest.raises(ConfirmationRequired, match="digest"):
        execute(made, digest="sha256:0")
    ledger.do("UPDATE rota_operations SET expires_at = now()")
    with pytest.raises(PlanError, match="make a new plan"):
        execute(made)
    with pytest.raises(UnknownPlan):
        execute(made.model_copy(update={"id": made.id + 1}))
    assert ledger.runs("carry-out-operation") == []


def test_a_plan_that_is_confirmed_twice_is_carried_out_once(plan, execute, carry_out, dead, ledger, look):
    dead(2)
    made = plan("retry", job="work")

    assert execute(made) == execute(made)
    carry_out(made.id)
    assert execute(made).state == "done"

    assert len(ledger.runs("carry-out-operation")) == 1
    assert len(ledger.rows("SELECT * FROM rota_audit")) == 1


#: Ways in which a run that carries out an operation can end or vanish before the operation has ended.
ENDS = {
    "dropped": "UPDATE rota_runs SET state = 'dead', reason = 'dropped', finished_at = now() WHERE id = :id",
    "orphaned": "UPDATE rota_runs SET state = 'orphaned', reason = 'absent', finished_at = now() WHERE id = :id",
    "pruned": "DELETE FROM rota_runs WHERE id = :id",
}


@pytest.mark.parametrize("end", ENDS)
def test_an_operation_whose_run_has_ended_early_gets_another_when_confirmed_again(
    plan, execute, carry_out, dead, ledger, look, end
):
    dead(4)
    made = plan("retry", job="work", rate=2)
    first = execute(made)
    carry_out(made.id, batches=1)
    ledger.do(ENDS[end], id=first.run_id)

    again = execute(made)

    assert again.run_id > first.run_id
    assert ledger.run(again.run_id).state == "queued"
    assert execute(made).run_id == again.run_id
    carry_out(made.id)
    assert (look(made.id).state, look(made.id).changed) == ("done", 4)


def test_the_audit_names_each_who_resumed_an_operation_and_counts_once(plan, execute, carry_out, dead, ledger):
    dead(4)
    made = plan("retry", job="work", rate=2)
    execute(made)
    carry_out(made.id, batches=1)
    ledger.do("UPDATE rota_operations SET state = 'stopped'")

    execute(made, ROOT)
    carry_out(made.id)

    first, second = ledger.rows("SELECT * FROM rota_audit ORDER BY id")
    assert (first.actor, first.details["runs"]) == ("ann", 4)
    assert (second.actor, second.action, second.target) == ("root", "retry", "work")
    assert second.details == {"operation": made.id, "resumed": True}


def test_the_audit_says_that_a_plan_was_for_one_key_or_limited(plan, execute, dead, ledger):
    dead(3, key="ann@example.org")
    execute(plan("retry", job="work", key="ann@example.org", limit=2))

    (entry,) = ledger.rows("SELECT details FROM rota_audit")
    told = {name: entry.details.get(name) for name in ("job", "key", "limit", "planned")}
    assert told == {"job": "work", "key": "(a key)", "limit": 2, "planned": 2}


@pytest.mark.parametrize("conditions", [{"limit": 3}, {"ids": [1], "limit": 3}, {"ids": [1], "key": "a"}])
def test_a_limit_is_no_condition_and_ids_have_none(plan, dead, conditions):
    dead()
    with pytest.raises(SelectionError, match="give the runs' ids, or"):
        plan("retry", **conditions)


def test_an_operation_that_is_cancelled_leaves_the_others(
    plan, execute, carry_out, look, dead, ledger, database, caplog
):
    caplog.set_level("INFO")
    dead(5)
    made = plan("retry", job="work", rate=2)
    execute(made)
    carry_out(made.id, batches=1)

    with database.begin() as connection:
        cancelled = plans.cancel(connection, made.id, ANN)
    carry_out(made.id)

    assert (cancelled.state, cancelled.changed, cancelled.remaining, cancelled.ended_by) == ("cancelled", 2, 3, "ann")
    assert sorted(ledger.states("work")) == ["dead"] * 3 + ["retrying"] * 2
    with pytest.raises(PlanError, match="cancelled"):
        execute(made)
    assert len(emitted(caplog, "operation.cancelled")) == 1


def test_a_batch_that_is_interrupted_is_done_again_from_its_start(
    plan, execute, carry_out, look, dead, registry, ledger
):
    dead(4)
    made = plan("retry", job="work", rate=2)
    execute(made)
    with Session(ledger.engine) as session:
        carrying_out.next_batch(Attempt(session, ledger), registry, settings.load(), made.id)
        session.rollback()
    assert ledger.states("work") == ["dead"] * 4

    carry_out(made.id)

    assert look(made.id).changed == 4
    assert ledger.states("work") == ["retrying"] * 4


def test_a_plan_of_many_is_dealt_with_in_batches_and_every_run_once(plan, execute, carry_out, look, ledger, database):
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO rota_runs (job, queue, state, finished_at) "
            "SELECT 'work', 'default', 'dead', now() FROM generate_series(1, 2300)"
        )
    made = plan("retry", job="work")
    execute(made)

    carry_out(made.id, batches=3)
    assert look(made.id).changed == 1500
    carry_out(made.id)

    assert look(made.id).changed == 2300
    assert set(ledger.states("work")) == {"retrying"}
    assert [len(row.ids) for row in ledger.rows("SELECT ids FROM rota_operation_items ORDER BY chunk")] == [
        1000, 1000, 300,
    ]  # fmt: skip


def test_rights_are_checked_when_it_is_planned_confirmed_and_before_each_batch(
    plan, execute, carry_out, look, dead, ledger, database, caplog
):
    dead(4)
    dead(1, job="other", queue="elsewhere")
    limited = Actor("lim", "http", "operator", plugins=frozenset(["tests"]))
    for actor in (EVE, Actor("lim", "http", "operator", plugins=frozenset(["others"]))):
        with pytest.raises(Forbidden):
            plan("retry", actor, job="work")
    made = plan("retry", limited, job="work", rate=2)
    with pytest.raises(Forbidden):
        execute(made, EVE)
    with database.begin() as connection:
        secret = credentials.create(connection, credentials.Wanted("bot", "operator", lasting=timedelta(days=1)), ROOT)
        bot = tokens.holder(connection, secret.token)
    execute(made, bot)
    carry_out(made.id, batches=1)
    with database.begin() as connection:
        credentials.revoke(connection, "bot", ROOT)

    carry_out(made.id)

    stopped = look(made.id)
    assert (stopped.state, stopped.changed, stopped.remaining) == ("stopped", 2, 2)
    assert stopped.ended_because == "the token with which bot confirmed has expired or was revoked"
    assert len(emitted(caplog, "operation.stopped")) == 1

    assert execute(made, ANN).state == "running"
    carry_out(made.id)
    assert look(made.id).changed == 4


def test_a_person_with_limits_sees_operations_within_them_alone(plan, execute, dead, database):
    dead(1)
    dead(1, job="other", queue="elsewhere")
    mine, theirs = plan("retry", job="work"), plan("retry", job="other")
    execute(mine)
    execute(theirs)
    limited = Actor("lim", "http", "viewer", plugins=frozenset(["tests"]))

    with database.connect() as connection:
        assert [each.id for each in plans.listed(connection, limited).items] == [mine.id]
        assert [each.id for each in plans.listed(connection, ANN).items] == [theirs.id, mine.id]
        assert [each.id for each in plans.listed(connection, ANN, limit=1, before=theirs.id).items] == [mine.id]
        with pytest.raises(Forbidden):
            plans.one(connection, theirs.id, limited)


def test_old_operations_and_plans_are_deleted(plan, execute, carry_out, dead, ledger, database):
    dead(1)
    done, young, forgotten = (plan("retry", job="work") for _ in range(3))
    execute(done)
    carry_out(done.id)
    ledger.do("UPDATE rota_operations SET finished_at = now() - interval '31 days' WHERE id = :id", id=done.id)
    ledger.do("UPDATE rota_operations SET expires_at = now() - interval '25 hours' WHERE id = :id", id=forgotten.id)

    with Session(database) as session, session.begin():
        retention.prune_operations(session)

    assert [row.id for row in ledger.rows("SELECT id FROM rota_operations")] == [young.id]
    assert {row.operation_id for row in ledger.rows("SELECT operation_id FROM rota_operation_items")} == {young.id}


def test_a_run_of_the_job_works_for_a_while_at_the_rate_and_requests_the_next(
    plan, execute, dead, registry, ledger, monkeypatch, look
):
    monkeypatch.setattr(carrying_out, "SLICE_SECONDS", 0.5)
    dead(30)
    made = plan("retry", job="work", rate=20)
    execute(made)
    asked = []
    with Session(ledger.engine) as session:
        attempt = Attempt(session, ledger)
        attempt.enqueue = lambda job, **given: asked.append((job, given)) or 4711

        told = carrying_out.carry_out(attempt, registry, settings.load(), made.id)
        session.commit()

    assert told == {"operation": made.id, "dealt_with": 20, "is_over": False}
    ((job_name, given),) = asked
    assert (job_name, given["key"], given["args"]) == ("carry-out-operation", str(made.id), {"operation": made.id})
    assert 0.5 < given["delay"].total_seconds() <= 1
    assert (look(made.id).changed, look(made.id).run_id) == (20, 4711)
    json.dumps(told)
