"""The dead man's switch: expected and actual slots are compared, and reported by metrics, in the log and by ``rota
check``.
"""

import json
import logging
from datetime import timedelta

import pytest
from click.testing import CliRunner

from core import cron, every, job
from core import database as databases
from core.cli import main
from core.dispatcher import overdue_alarm
from core.dispatcher.overdue_alarm import Watch
from core.ledger import overdue, slots
from core.ledger.slots import Watermark
from core.observability.events import SlotCaughtUp, SlotOverdue
from core.testing import registry_of
from tests.support.emitted import emitted


@job("work", queue="mail", schedule=every(hours=1), hard_limit=timedelta(hours=2))
def work(run):
    pass


@pytest.fixture
def connection(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def now(ledger):
    return ledger.value("SELECT clock_timestamp()")


@pytest.fixture
def accounted(connection, now):
    """Record that the slots of a job are accounted for, by default until now."""

    def accounted(job=work, *, ago=timedelta(0)):
        slots.account(connection, {job.name: Watermark(str(job.schedule), now - ago)})

    return accounted


@pytest.fixture
def slot(ledger, now):
    """Insert a slot that came due so many hours ago, in that state."""

    def slot(hours, state, reason=None, **columns):
        at = now - timedelta(hours=hours)
        final = state not in ("queued", "running", "retrying")
        columns = {"slot": at, "state": state, "reason": reason, "finished_at": at if final else None, **columns}
        return ledger.request(columns.pop("job", "work"), queue="mail", **columns)

    return slot


@pytest.fixture
def standing(connection):
    def standing(job=work):
        (found,) = overdue.look(connection, [job])
        return found

    return standing


class TestLook:
    def test_a_job_whose_slots_nobody_has_accounted_for_is_not_expected_to_run(self, connection):
        assert overdue.look(connection, [work]) == []

    @pytest.mark.parametrize("state", ["dead", "missed", "orphaned"])
    def test_what_came_to_nothing_is_overdue_at_once(self, accounted, slot, standing, state, now):
        accounted()
        slot(3, "succeeded"), slot(2, state), slot(0, state)

        found = standing()

        assert (found.overdue, getattr(found, state)) == (2, 2)
        assert found.succeeded_slot == now - timedelta(hours=3)

    def test_what_came_before_the_last_success_does_not_matter(self, accounted, slot, standing):
        accounted()
        slot(4, "dead"), slot(3, "missed"), slot(2, "succeeded")

        assert standing().overdue == 0

    def test_what_nobody_has_started_is_overdue_after_half_a_minute(self, accounted, slot, standing):
        accounted()
        slot(0, "queued")
        assert (standing().queued, standing().overdue) == (1, 0)

        slot(0.01, "queued")
        assert (standing().queued, standing().overdue) == (2, 1)

    @pytest.mark.parametrize(("state", "reason"), [("running", None), ("retrying", "error"), ("skipped", "overlap")])
    def test_what_is_at_work_has_until_its_hard_limit(self, accounted, slot, standing, state, reason):
        accounted()
        slot(1.9, state, reason, exclusive=False)
        assert standing().overdue == 0

        slot(2.1, state, reason, exclusive=False)
        assert standing().overdue == 1

    def test_what_was_paused_never_is_and_is_told_apart_from_an_overlap(self, accounted, slot, standing):
        accounted()
        slot(9, "skipped", "paused"), slot(8, "skipped", "paused"), slot(7, "skipped", "overlap")

        found = standing()

        assert (found.paused, found.overlapped, found.overdue) == (2, 1, 1)

    def test_runs_by_request_and_of_other_keys_say_nothing_of_slots(self, accounted, ledger, standing, slot):
        accounted()
        slot(5, "dead"), slot(4, "succeeded", key="k")
        ledger.request("work", state="succeeded", finished_at="now")

        assert (standing().overdue, standing().succeeded_slot) == (1, None)

    def test_the_last_success_is_remembered_and_outlives_its_run(
        self, accounted, slot, standing, connection, ledger, now
    ):
        accounted()
        slot(3, "succeeded"), slot(2, "dead")
        overdue.remember(connection, [standing()])
        ledger.do("DELETE FROM rota_runs WHERE state = 'succeeded'")

        found = standing()

        assert (found.is_news, found.succeeded_slot, found.overdue) == (False, now - timedelta(hours=3), 1)

    def test_an_older_success_is_no_news(self, accounted, slot, standing, connection):
        accounted()
        slot(2, "succeeded")
        overdue.remember(connection, [standing()])
        slot(3, "succeeded")

        assert not standing().is_news

    def test_counting_ends_somewhere(self, accounted, ledger, standing):
        accounted()
        ledger.do(
            "INSERT INTO rota_runs (job, queue, slot, state, finished_at) SELECT 'work', 'mail', "
            "clock_timestamp() - make_interval(secs => number), 'dead', clock_timestamp() "
            "FROM generate_series(1, 3000) AS number"
        )

        assert standing().overdue == overdue.MOST_COUNTED

    def test_it_walks_down_the_index_of_slots_and_no_further_than_the_last_success(
        self, accounted, ledger, connection, standing
    ):
        """The query reads no more slots, however many runs are finished and however many jobs there are."""
        accounted()
        ledger.do(
            "INSERT INTO rota_runs (job, queue, slot, state, finished_at) SELECT 'work', 'mail', "
            "clock_timestamp() - make_interval(mins => number), 'succeeded', clock_timestamp() "
            "FROM generate_series(1, 20000) AS number"
        )
        ledger.do("ANALYZE rota_runs")
        overdue.remember(connection, [standing()])
        parameters = {"jobs": ["work"], "limits": [work.hard_limit], "tolerance": overdue.TOLERANCE}

        plan = ledger.rows(f"EXPLAIN (ANALYZE, FORMAT JSON) {overdue.LOOK.text}", **parameters)[0][0][0]["Plan"]

        scans = [node for node in nodes(plan) if node.get("Relation Name") == "rota_runs"]
        assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
        assert {node["Index Name"] for node in scans} == {"rota_runs_slot"}
        assert sum(node["Actual Rows"] for node in scans) == 0


def nodes(plan):
    """Return a node of a plan, and all nodes below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


class TestWatch:
    @pytest.fixture
    def told(self, monkeypatch):
        """Return the values of the metrics."""
        told = {}
        monkeypatch.setattr(overdue_alarm.metrics, "overdue", lambda counts: told.update(overdue=dict(counts)))
        monkeypatch.setattr(overdue_alarm.metrics, "succeeded_at", lambda task, at: told.update({task: at}))
        return told

    @pytest.fixture
    def look(self, connection, told):
        made = Watch(registry_of(work))

        def look(seconds=0.0, held=()):
            made.look(connection, held, now=seconds)
            return told.get("overdue")

        return look

    def test_each_jobs_slots_are_told_and_when_it_last_succeeded(self, accounted, slot, look, told, now):
        accounted()
        slot(3, "succeeded"), slot(2, "dead")

        assert look() == {"work": 1}
        assert told["work"] == pytest.approx((now - timedelta(hours=3)).timestamp())

    def test_it_looks_every_15_s_and_remembers(self, accounted, slot, look, ledger):
        accounted()
        slot(3, "succeeded"), slot(2, "dead")
        look(0)
        slot(1, "dead")

        assert [look(14.9), look(15.1)] == [{"work": 1}, {"work": 2}]
        assert ledger.value("SELECT succeeded_slot FROM rota_schedules") is not None

    def test_a_job_that_is_held_by_a_pause_is_let_be(self, accounted, slot, look, caplog):
        accounted()
        slot(3, "dead"), slot(2, "dead")

        assert look(held={"work"}) == {"work": 0}
        assert not emitted(caplog, "slot.overdue")

    def test_two_slots_in_a_row_without_success_are_logged_once_and_so_is_their_end(
        self, accounted, slot, look, caplog
    ):
        caplog.set_level(logging.INFO)
        accounted()
        slot(5, "dead")
        look(0)
        assert caplog.messages == []

        slot(4, "dead")
        look(15), look(30)
        assert [record.msg for record in caplog.records] == [SlotOverdue("work", 2, None)]

        slot(1, "succeeded")
        look(45)
        assert [record.msg for record in caplog.records[1:]] == [SlotCaughtUp("work")]


@pytest.fixture
def rota(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


class TestCheck:
    """In these tests no process is alive: the check reads only the ledger and the schedules."""

    @pytest.fixture(autouse=True)
    def installed(self, use_jobs):
        use_jobs(work)

    def told(self, rota, *words):
        checks = json.loads(rota("check", "--json", *words).stdout)["checks"]
        (found,) = [check for check in checks if check["name"].startswith("slots")]
        return found

    def test_all_is_well(self, rota, accounted, slot):
        accounted()
        slot(1, "succeeded")

        assert self.told(rota, "--live")["outcome"] == "ok"

    def test_a_job_without_success_is_told_with_what_became_of_its_slots(self, rota, accounted, slot, now):
        accounted()
        slot(9, "succeeded"), slot(8, "dead"), slot(7, "missed", "grace"), slot(6, "missed", "grace")
        slot(5, "skipped", "overlap"), slot(4, "skipped", "paused")

        found = self.told(rota, "--live")

        assert (found["name"], found["outcome"]) == ("slots of work", "wrong")
        last = f"{now - timedelta(hours=9):%Y-%m-%d %H:%M:%S} UTC"
        assert found["found"] == (
            f"no successful slot since that of {last}; 3 slots came due: 1 dead, 2 missed; "
            "besides, 1 since another run was running and 1 in a pause were skipped"
        )
        assert self.told(rota)["outcome"] == "info", "it counts where processes count"

    def test_while_the_whole_fleet_is_down_slots_are_counted_from_the_schedule(self, rota, accounted, slot):
        accounted(ago=timedelta(hours=5, minutes=1))
        slot(6, "succeeded")

        found = self.told(rota, "--live")

        assert found["outcome"] == "wrong"
        assert "5 slots came due: 5 not on record" in found["found"]

    def test_slots_that_only_the_scheduler_has_inserted_are_not_counted_twice(self, rota, accounted, slot, ledger):
        accounted(ago=timedelta(hours=5, minutes=1))
        whole = ledger.value("SELECT date_trunc('hour', clock_timestamp())")
        for hours in range(1, 5):
            slot(0, "queued", slot=whole - timedelta(hours=hours))
        slot(0, "queued", slot=whole)

        assert "5 slots came due: 5 not started" in self.told(rota)["found"]

    def test_slots_of_a_pause_that_nobody_recorded_do_not_count(self, rota, accounted, ledger):
        accounted(ago=timedelta(hours=9))
        ledger.do(
            "INSERT INTO rota_pauses (scope, paused_by, paused_at, until) VALUES "
            "('queue:mail', 'ann', clock_timestamp() - interval '1 day', clock_timestamp() - interval '1 minute')"
        )

        assert self.told(rota, "--live")["outcome"] == "ok"

    def test_a_job_that_is_paused_now_is_not_wrong(self, rota, accounted, slot):
        accounted()
        slot(9, "dead"), slot(8, "dead")
        rota("pause", "work")

        assert self.told(rota, "--live")["outcome"] == "ok"

    def test_a_changed_schedule_expects_nothing_before_somebody_has_seen_it(self, rota, accounted):
        accounted(job("work", schedule=cron("0 3 * * *"))(lambda run: None), ago=timedelta(days=9))

        assert self.told(rota, "--live")["outcome"] == "ok"

    def test_one_slot_without_success_is_not_wrong_yet(self, rota, accounted, slot):
        accounted()
        slot(2, "succeeded"), slot(1, "dead")

        assert self.told(rota, "--live")["outcome"] == "ok"
