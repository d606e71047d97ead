"""Limits: never more runs are at work, or are started, than a limit allows, and no run waits while there is room."""

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core import Limit, Run, close_limit, enqueue, every, job
from core import database as databases
from core.dispatcher.turns import RoomKeeper
from core.jobs import arguments
from core.ledger import (
    cancels,
    claims,
    direct,
    key_checks,
    limits,
    processes,
    releases,
    room,
    runs,
    shares,
    slots,
    subjects,
    unconnected,
)
from core.ledger.claims import CLAIM, Verdict
from core.ledger.models import State
from core.ledger.runs import Failure
from core.ledger.slots import SlotRow
from core.observability.events import RunLimited
from core.testing import Member, registry_of
from core.worker.claiming import limits_of
from core.worker.executor import Executor
from core.worker.wakes import Room, Wakes
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.racing import race
from tests.support.two_releases import unpack

MINUTE = timedelta(minutes=1)
JOBS = ("work", "other")


#: Claims a run in both ways of the previous release. Returns the error with which each claim is refused, and whether
#: the present claim refuses the run.
FORMER_CLAIMS = """
import sys
from core import database
from core.ledger import leases

engine, run_id, process_id = database.connect(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for way, runs in ((leases.claim, run_id), (leases.claim_many, [(run_id, "work", ())])):
    try:
        with database.autocommit(engine) as connection:
            options = {"job": "work"} if way is leases.claim else {}
            print(way(connection, runs, process_id=process_id, worker="former", **options))
    except Exception as error:
        print(type(error).__name__, "rota_runs_limits" in str(error))
"""


def limited(*declared, name="work", **options):
    """Return a job with these limits."""

    @job(name, limits=list(declared), **options)
    def work(run: Run, host: str = "a") -> None:
        """Do nothing."""

    return work


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def start(database, start_process, use_jobs):
    """Return a function that registers a process with these jobs, which this process gets as well. It returns a
    function that claims a run.
    """

    def start(*jobs, **options):
        use_jobs(*jobs)
        process = start_process(jobs=jobs, **options)
        by_name = {each.name: each for each in jobs}

        def claim(run_id, name="work"):
            has_limits = by_name[name].limits
            return process.claim(
                database, run_id, name, limits=(lambda args: limits_of(by_name[name], args)) if has_limits else None
            )

        claim.process = process
        return claim

    return start


@pytest.fixture
def ask(database):
    """Request runs as an application does. Return their ids."""

    def ask(count=1, name="work", **options):
        with Session(database) as session, session.begin():
            return [enqueue(session, name, **options) for _ in range(count)]

    return ask


@pytest.fixture
def wake(autocommit):
    """Wake the runs that wait for a limit."""

    def wake(name="smtp", most=room.MOST_WOKEN):
        return [each.run_id for each in room.wake(autocommit, {name: most}, carried=True)]

    return wake


def verdicts(claim, run_ids, name="work"):
    return [claim(run_id, name)[0] for run_id in run_ids]


def is_parked(ledger, run_id):
    run = ledger.run(run_id)
    return (
        run.waits_for if ledger.value("SELECT sent_at = 'infinity' FROM rota_runs WHERE id = :id", id=run_id) else None
    )


class TestAtOnce:
    def test_no_more_runs_are_at_work_than_the_limit_allows(self, start, ask, ledger):
        claim = start(limited(Limit("smtp", at_once=2)))
        asked = ask(3)

        assert verdicts(claim, asked) == [Verdict.RUNNING, Verdict.RUNNING, Verdict.LIMITED]

        run = ledger.run(asked[2])
        assert (run.state, run.reason, run.attempt, run.waits_for) == ("queued", "limit", 0, "smtp")
        assert is_parked(ledger, asked[2])

    @pytest.mark.parametrize("how", ["succeeded", "failed", "released", "cancelled", "recovered"])
    def test_the_end_of_a_run_makes_room(self, start, ask, ledger, autocommit, wake, how, start_process):
        claim = start(limited(Limit("smtp", at_once=1)))
        first, second = ask(2)
        _, lease = claim(first)
        assert claim(second)[0] == Verdict.LIMITED
        assert wake() == []

        if how == "succeeded":
            assert runs.succeed(autocommit, lease, None) is not None
        elif how == "failed":
            runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "x", MINUTE))
        elif how == "released":
            runs.release(autocommit, lease.process_id, "stopped")
        elif how == "cancelled":
            cancels.cancel(autocommit, [first], by="test")
            assert wake() == [], "its function has not returned yet"
            assert cancels.end(autocommit, lease)
        else:
            ledger.do("DELETE FROM rota_processes")
            processes.recover(autocommit, 3)
            claim = start(limited(Limit("smtp", at_once=1)))

        assert wake() == [second]
        assert claim(second)[0] == Verdict.RUNNING

    def test_jobs_share_a_limit_by_its_name(self, start, ask):
        claim = start(limited(Limit("smtp", at_once=1)), limited(Limit("smtp", at_once=1), name="other"))

        assert verdicts(claim, ask(1)) == [Verdict.RUNNING]
        assert verdicts(claim, ask(1, "other"), "other") == [Verdict.LIMITED]

    def test_each_value_of_an_argument_has_a_limit_of_its_own(self, start, ask, ledger):
        claim = start(limited(Limit("imap:{host}", at_once=1)))
        first, second, third = ask(), ask(args={"host": "b"}), ask(args={"host": "a"})

        assert verdicts(claim, [*first, *second, *third]) == [Verdict.RUNNING, Verdict.RUNNING, Verdict.LIMITED]
        run = ledger.run(third[0])
        assert (run.limits, run.limits_declared, run.waits_for) == (["imap:a"], ["imap:{host}"], "imap:a")

    def test_a_run_holds_no_room_of_one_limit_while_another_is_full(self, start, ask, wake, autocommit):
        both = limited(Limit("one", at_once=1), Limit("two", at_once=1))
        claim = start(
            both, limited(Limit("two", at_once=1), name="other"), limited(Limit("one", at_once=1), name="third")
        )
        (holder,), (waiting,), (third,) = ask(1, "other"), ask(1), ask(1, "third")
        _, lease = claim(holder, "other")

        assert claim(waiting)[0] == Verdict.LIMITED
        assert claim(third, "third")[0] == Verdict.RUNNING

        runs.succeed(autocommit, lease, None)
        assert wake("two") == [waiting]
        assert claim(waiting)[0] == Verdict.LIMITED
        assert wake("two") == []

    def test_a_run_of_a_retry_needs_room_again_and_has_it_only_once(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=2)))
        first, second, third = ask(3)
        _, lease = claim(first)
        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "x"))

        assert verdicts(claim, [first, second, third]) == [Verdict.RUNNING, Verdict.RUNNING, Verdict.LIMITED]

    def test_a_slot_has_the_limits_of_its_job(self, start, ledger, autocommit):
        declared = limited(Limit("imap:{host}", at_once=1), Limit('odd "\\ name', at_once=5), schedule=every(minutes=1))
        claim = start(declared)
        now = ledger.value("SELECT date_trunc('minute', now())")

        (run_id,) = slots.insert(autocommit, declared, [SlotRow(now)], carried=True)

        assert ledger.run(run_id).limits == ["imap:a", 'odd "\\ name']
        assert claim(run_id)[0] == Verdict.RUNNING

    def test_a_run_that_was_inserted_without_limits_gets_them_when_it_is_claimed(self, start, ledger):
        claim = start(limited(Limit("imap:{host}", at_once=1)))
        older = [ledger.request(exclusive=False) for _ in range(2)]

        assert verdicts(claim, older) == [Verdict.RUNNING, Verdict.LIMITED]
        assert ledger.run(older[0]).limits == ["imap:a"]

    def test_a_run_of_a_limit_that_nobody_declares_any_more_starts(self, start, ask, wake, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, parked, third = ask(3)
        assert verdicts(claim, [holder, parked]) == [Verdict.RUNNING, Verdict.LIMITED]

        ledger.do("DELETE FROM rota_processes")
        claim = start(limited())

        assert wake() == [parked]
        assert verdicts(claim, [parked, third]) == [Verdict.RUNNING, Verdict.RUNNING]

    def test_a_run_that_comes_later_leaves_the_room_to_the_one_that_was_woken(self, start, ask, wake, autocommit):
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, waiting = ask(2)
        _, lease = claim(holder)
        claim(waiting)
        runs.succeed(autocommit, lease, None)
        assert wake() == [waiting]

        (later,) = ask()
        assert claim(later)[0] == Verdict.LIMITED
        assert wake() == [], "the room is kept for the one that was woken"
        assert claim(waiting)[0] == Verdict.RUNNING

    def test_a_run_that_was_woken_and_does_not_come_loses_its_room(self, start, ask, wake, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, absent, later = ask(3)
        _, lease = claim(holder)
        assert verdicts(claim, [absent, later]) == [Verdict.LIMITED] * 2
        runs.succeed(autocommit, lease, None)
        assert wake() == [absent]

        ledger.do("UPDATE rota_runs SET sent_at = sent_at - interval '6 seconds' WHERE id = :id", id=absent)

        assert wake() == [later]
        assert claim(later)[0] == Verdict.RUNNING
        assert claim(absent)[0] == Verdict.LIMITED

    def test_runs_start_by_priority_and_then_by_due_time(self, start, ask, wake, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        (holder,) = ask()
        low, lower = ask(2)
        (urgent,) = ask(priority=5)
        _, lease = claim(holder)
        assert verdicts(claim, [lower, low, urgent]) == [Verdict.LIMITED] * 3

        order = []
        while lease is not None:
            runs.succeed(autocommit, lease, None)
            woken = wake()
            assert len(woken) <= 1
            order += woken
            lease = claim(woken[0])[1] if woken else None

        assert order == [urgent, low, lower]


#: Undoes a claim before the function of its run is called.
UNDONE = {
    "misfit": lambda connection, lease: claims.refuse(connection, lease, arguments.form(limited())),
    "subject unknown": lambda connection, lease: subjects.hand_back(connection, lease, "table away"),
    "no subject": lambda connection, lease: subjects.orphan(connection, lease, "row missing"),
    "unscheduled": lambda connection, lease: key_checks.check(connection, lease).skipped,
}


class TestPer:
    def test_no_more_runs_start_than_the_bucket_has(self, start, ask, autocommit, wake):
        claim = start(limited(Limit("smtp", most=3, per=MINUTE)))

        for run_id in ask(3):
            _, lease = claim(run_id)
            runs.succeed(autocommit, lease, None)
        (late,) = ask()

        assert claim(late)[0] == Verdict.LIMITED
        assert wake() == []

    def test_the_bucket_is_refilled_evenly(self, start, ask, wake, ledger, autocommit):
        claim = start(limited(Limit("smtp", most=3, per=MINUTE)))
        *started, first, second = ask(5)
        assert verdicts(claim, started) == [Verdict.RUNNING] * 3
        assert verdicts(claim, [first, second]) == [Verdict.LIMITED] * 2
        seconds = room.seconds_until_room(autocommit, ["smtp"])
        assert 15 < seconds <= 20

        ledger.do("UPDATE rota_limits SET used_at = used_at - interval '20 seconds'")

        assert wake() == [first]
        assert claim(first)[0] == Verdict.RUNNING
        assert wake() == []

    def test_a_bucket_never_holds_more_than_its_size(self, start, ask, ledger):
        claim = start(limited(Limit("smtp", most=2, per=MINUTE)))
        claim(ask()[0])
        ledger.do("UPDATE rota_limits SET used_at = used_at - interval '1 day'")

        assert verdicts(claim, ask(3)) == [Verdict.RUNNING, Verdict.RUNNING, Verdict.LIMITED]

    @pytest.mark.parametrize("why", UNDONE)
    def test_a_run_that_was_not_begun_gives_its_token_back(self, start, start_process, ask, autocommit, ledger, why):
        claim = start(limited(Limit("smtp", most=1, per=MINUTE), Limit("imap", at_once=5)))
        start_process(jobs=[job("work")(lambda run: None)], queues=["default"])
        _, lease = claim(ledger.request(slot=ledger.value("SELECT clock_timestamp()"), exclusive=False))
        assert verdicts(claim, ask()) == [Verdict.LIMITED]

        assert UNDONE[why](autocommit, lease)

        assert verdicts(claim, ask(2)) == [Verdict.RUNNING, Verdict.LIMITED]

    def test_a_run_whose_function_may_have_begun_keeps_its_token(self, start, ask, autocommit):
        claim = start(limited(Limit("smtp", most=1, per=MINUTE)))
        _, lease = claim(ask()[0])

        assert unconnected.release(autocommit, lease, "no connection") == "retrying"

        assert verdicts(claim, ask()) == [Verdict.LIMITED]

    def test_tokens_that_are_given_back_do_not_exceed_the_bucket(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("smtp", most=1, per=MINUTE)))
        _, lease = claim(ask()[0])
        ledger.do("UPDATE rota_limits SET used_at = used_at - interval '1 minute'")
        subjects.hand_back(autocommit, lease, "table away")

        assert verdicts(claim, ask(2)) == [Verdict.RUNNING, Verdict.LIMITED]

    def test_a_fast_rate_is_kept_by_the_dispatcher(self, start, ask, ledger, autocommit):
        claim = start(limited(Limit("smtp", most=1, per=timedelta(milliseconds=200))))
        first, second = ask(2)
        assert verdicts(claim, [first, second]) == [Verdict.RUNNING, Verdict.LIMITED]
        keeper = RoomKeeper()
        assert keeper.look(autocommit, JOBS) == 0
        assert keeper.due_at - time.monotonic() <= 0.2

        assert eventually(lambda: keeper.look(autocommit, JOBS), within=2)
        assert [each.run_id for each in shares.take(autocommit, "default", ["work"], shares.Turns(), batch=10)] == [
            second
        ]


class TestClosing:
    def test_a_closed_limit_lets_nothing_start_until_then(self, start, ask, database, autocommit, ledger, wake):
        claim = start(limited(Limit("imap:{host}", at_once=5)))
        with Session(database) as session, session.begin():
            close_limit(session, "imap:a", until=MINUTE, reason="429")
            close_limit(session, "imap:a", until=timedelta(seconds=1))
        held, free = ask(), ask(args={"host": "b"})

        assert verdicts(claim, held + free) == [Verdict.LIMITED, Verdict.RUNNING]
        assert wake("imap:a") == []
        assert 50 < room.seconds_until_room(autocommit, ["imap:a"]) <= 60

        ledger.do("UPDATE rota_closings SET until = clock_timestamp()")
        assert wake("imap:a") == held
        assert verdicts(claim, held) == [Verdict.RUNNING]

    def test_a_limit_that_is_being_closed_stops_no_claim(self, start, ask, database):
        claim = start(limited(Limit("smtp", at_once=5)))
        with Session(database) as session:
            close_limit(session, "smtp", until=MINUTE)
            assert verdicts(claim, ask()) == [Verdict.RUNNING]
            session.commit()

        assert verdicts(claim, ask()) == [Verdict.LIMITED]


class TestReleases:
    def test_the_smaller_number_of_live_releases_holds(self, start, ask, wake, database, autocommit, ledger):
        start(limited(Limit("smtp", at_once=3)))
        smaller = start(limited(Limit("smtp", at_once=1), queue="default"))
        first, second, third = ask(3)
        assert verdicts(smaller, [first, second, third]) == [Verdict.RUNNING, Verdict.LIMITED, Verdict.LIMITED]

        processes.resign(autocommit, smaller.process.id, "stopped")
        larger = start(limited(Limit("smtp", at_once=3)))

        assert wake() == [second, third]
        assert verdicts(larger, [second, third]) == [Verdict.RUNNING] * 2

    def test_the_smaller_number_of_two_jobs_holds(self):
        release = releases.of(
            registry_of(
                limited(Limit("smtp", at_once=3), Limit("rate", most=10, per=MINUTE)),
                limited(Limit("smtp", at_once=2), Limit("rate", most=20, per=10 * MINUTE), name="other"),
            )
        )

        assert release.limits == {"smtp": {"at_once": 2}, "rate": {"most": 10, "per_second": 20 / 600}}

    def test_a_claim_that_does_not_look_at_limits_is_refused(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        (run_id,) = ask()
        unlooking = CLAIM.body.replace("limits IS NULL", "true")
        assert unlooking != CLAIM.body
        values = [run_id, "work", claim.process.id, "test:1", 100, "{}", "", True]

        with pytest.raises(IntegrityError, match="rota_runs_limits"):
            autocommit.exec_driver_sql(
                f"PREPARE unlooking (bigint, text, bigint, text, int, text[], text, boolean) AS {unlooking}"
            ) and autocommit.exec_driver_sql("EXECUTE unlooking (%s, %s, %s, %s, %s, %s, %s, %s)", tuple(values))

        assert ledger.run(run_id).state == "queued"
        assert claim(run_id)[0] == Verdict.RUNNING

    def test_the_release_before_claims_no_run_with_limits(self, start, ask, ledger, postgres_url, tmp_path):
        claim = start(limited(Limit("smtp", at_once=1)))
        (run_id,) = ask()
        unpack(tmp_path)

        said = subprocess.run(
            [sys.executable, "-c", FORMER_CLAIMS, postgres_url, str(run_id), str(claim.process.id)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
            timeout=60,
        )  # fmt: skip

        assert said.stdout.split() == ["IntegrityError", "True"] * 2, said
        assert (ledger.run(run_id).state, ledger.run(run_id).attempt) == ("queued", 0)
        assert claim(run_id)[0] == Verdict.RUNNING

    def test_a_cancelled_run_keeps_its_mark(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        first, second = ask(2)
        claim(first)

        assert cancels.cancel(autocommit, [first], by="test")[0].is_new

        assert ledger.run(first).state == "running"
        assert claim(second)[0] == Verdict.LIMITED


class TestTurns:
    def test_a_run_that_waits_for_a_limit_keeps_the_turn_of_its_key(self, start, ask, wake, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1), overlap="wait"))
        (holder,), (first, second) = ask(key="x"), ask(2, key="a")
        _, lease = claim(holder)

        assert verdicts(claim, [first, second]) == [Verdict.LIMITED, Verdict.WAITING]
        assert ledger.run(second).waits_for is None

        runs.succeed(autocommit, lease, None)
        assert wake() == [first]
        assert claim(first)[0] == Verdict.RUNNING

    def test_a_slot_that_waits_for_a_limit_was_tried(self, start, ask, ledger, autocommit):
        declared = limited(Limit("smtp", at_once=1), schedule=every(minutes=1), misfire="skip", overlap="allow")
        claim = start(declared)
        now = ledger.value("SELECT date_trunc('minute', now()) - interval '10 minutes'")
        early, late = slots.insert(autocommit, declared, [SlotRow(now), SlotRow(now + MINUTE)], carried=True)
        assert verdicts(claim, [early, late]) == [Verdict.RUNNING, Verdict.LIMITED]

        assert slots.miss(autocommit, [declared], 30) == []
        assert ledger.run(late).state == "queued"


class TestRaces:
    def test_claims_at_the_same_moment_do_not_exceed_a_limit(self, start, ask, ledger):
        claim = start(limited(Limit("smtp", at_once=3)))
        for _ in range(10):
            found = race(*(lambda run_id=run_id: claim(run_id)[0] for run_id in ask(8)))
            assert found.count(Verdict.RUNNING) == 3, found
            ledger.do("UPDATE rota_runs SET state = 'succeeded', finished_at = now() WHERE state = 'running'")
            ledger.do("UPDATE rota_runs SET state = 'dead', finished_at = now() WHERE state = 'queued'")

    def test_claims_at_the_same_moment_start_no_more_than_the_bucket_has(self, start, ask, ledger):
        claim = start(limited(Limit("smtp", most=3, per=timedelta(days=1))))
        for _ in range(10):
            found = race(*(lambda run_id=run_id: claim(run_id)[0] for run_id in ask(8)))
            assert found.count(Verdict.RUNNING) == 3, found
            ledger.do("DELETE FROM rota_limits")

    def test_claims_of_several_limits_do_not_deadlock(self, start, ask):
        names = [Limit(f"limit {number}", at_once=100) for number in range(5)]
        claim = start(limited(*names), limited(*reversed(names), name="other"))
        for _ in range(10):
            asked = [(run_id, name) for name in JOBS for run_id in ask(4, name)]
            found = race(*(lambda run_id=run_id, name=name: claim(run_id, name)[0] for run_id, name in asked))
            assert found == [Verdict.RUNNING] * 8

    def test_runs_of_many_threads_keep_a_limit_until_all_are_done(self, start, ask, database, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=2), Limit("imap:{host}", at_once=1)))
        asked = [run_id for host in "abc" for run_id in ask(10, args={"host": host})]
        at_work, most, lock, done = set(), [], threading.Lock(), []

        def work():
            while len(done) < len(asked):
                with databases.autocommit(database) as connection:
                    taken = direct.take(
                        connection,
                        ["work"],
                        ["default"],
                        direct.Turns(),
                        most=2,
                        began=ledger.value("SELECT now()"),
                        resend_seconds=60,
                    )
                    for each in taken:
                        _, lease = claim(each.run_id)
                        if lease is None:
                            room.wake(connection, {}, [each.run_id], carried=False)
                            continue
                        with lock:
                            at_work.add(lease.run_id)
                            most.append(len(at_work))
                        time.sleep(0.002)
                        with lock:
                            at_work.discard(lease.run_id)
                        runs.succeed(connection, lease, None)
                        done.append(lease.run_id)
                        room.wake(connection, dict.fromkeys(lease.limits, 1), carried=False)
                    if not taken:
                        RoomKeeper().look(connection, JOBS)

        ledger.do("UPDATE rota_runs SET sent_at = NULL")
        race(*[work] * 6)

        assert sorted(done) == sorted(asked)
        assert max(most) <= 2


class TestExecutor:
    def test_a_run_that_finds_a_limit_full_waits_and_starts_at_the_end_of_the_other(
        self, database, use_jobs, ledger, caplog, start_process, ask, carrier
    ):
        caplog.set_level("DEBUG")
        at_work, end = threading.Event(), threading.Event()

        @job("work", limits=[Limit("smtp", at_once=1)])
        def work(run: Run, host: str = "a") -> None:
            at_work.set()
            end.wait(30)

        use_jobs(work)
        process = start_process(jobs=[work])
        executor = Executor(database, Member(process.id), "test:1")
        first, second = ask(2)
        carrier.runs.clear()
        thread = threading.Thread(target=executor.execute, args=(work, first), daemon=True)
        thread.start()
        assert at_work.wait(10)

        assert executor.execute(work, second) == Verdict.LIMITED
        assert emitted(caplog, "run.limited") == [RunLimited("work", second)]
        end.set()
        thread.join(10)

        assert eventually(lambda: [each.run_id for each in carrier.runs] == [second], within=5)
        assert executor.execute(work, second) == "succeeded"
        executor.wakes.stop()

    @pytest.mark.usefixtures("use_jobs")
    def test_tests_of_plugins_run_limited_jobs(self, run_job):
        assert run_job(limited(Limit("imap:{host}", at_once=1))).state == "succeeded"


class TestWakes:
    def test_a_run_starts_soon_after_the_end_of_a_holder(self, start, ask, database, autocommit, carrier):
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, waiting = ask(2)
        carrier.runs.clear()
        _, lease = claim(holder)
        assert claim(waiting)[0] == Verdict.LIMITED
        wakes = Wakes(database)
        runs.succeed(autocommit, lease, None)

        wakes.add(Room("smtp"))

        assert eventually(lambda: [each.run_id for each in carrier.runs] == [waiting], within=2)
        wakes.stop()

    def test_a_run_that_parks_just_when_a_holder_ends_is_not_overlooked(
        self, start, ask, database, autocommit, carrier, monkeypatch
    ):
        monkeypatch.setattr("core.worker.wakes.LOOK_AGAIN_SECONDS", 1.0)  # longer than everything before
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, waiting = ask(2)
        carrier.runs.clear()
        _, lease = claim(holder)
        assert claim(waiting)[0] == Verdict.LIMITED
        wakes = Wakes(database)
        wakes.limited(waiting)
        eventually(lambda: not wakes._waiting, within=2)
        assert not carrier.runs

        runs.succeed(autocommit, lease, None)

        assert eventually(lambda: [each.run_id for each in carrier.runs] == [waiting], within=5), "the second look"
        wakes.stop()

    def test_ten_thousand_waiting_runs_cost_the_dispatcher_no_more_than_one(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("smtp", at_once=1)))
        holder, waiting = ask(2)
        assert verdicts(claim, [holder, waiting]) == [Verdict.RUNNING, Verdict.LIMITED]
        one = buffers(autocommit)
        ledger.do(
            """INSERT INTO rota_runs (job, key, queue, exclusive, limits, limits_declared, waits_for, sent_at, reason)
            SELECT 'work', n::text, 'default', false, '{smtp}', '{smtp}', 'smtp', 'infinity', 'limit'
            FROM generate_series(1, 10000) AS n"""
        )
        ledger.do("ANALYZE rota_runs")

        assert buffers(autocommit) <= one + 20
        assert RoomKeeper().look(autocommit, JOBS) == 0

    def test_the_dispatcher_looks_at_all_names_in_turn(self, start, autocommit, ledger, monkeypatch):
        start(limited(Limit("imap:{host}", at_once=1)))
        monkeypatch.setattr("core.dispatcher.turns.AT_ONCE", 3)
        ledger.do(
            """INSERT INTO rota_runs (job, queue, exclusive, limits, limits_declared, waits_for, sent_at, reason)
            SELECT 'work', 'default', false, ARRAY[name], ARRAY['imap:{host}'], name, 'infinity', 'limit'
            FROM generate_series(1, 10) AS n, concat('imap:', n) AS name"""
        )
        keeper = RoomKeeper()

        assert [keeper.look(autocommit, JOBS) for _ in range(4)] == [3, 3, 3, 1]

    def test_runs_of_a_paused_job_do_not_keep_others_waiting(self, start, ask, autocommit):
        claim = start(limited(Limit("smtp", at_once=1)), limited(Limit("smtp", at_once=1), name="other"))
        (holder, *paused), (free,) = ask(5), ask(1, "other")
        _, lease = claim(holder)
        assert verdicts(claim, paused) == [Verdict.LIMITED] * 4
        assert claim(free, "other")[0] == Verdict.LIMITED
        runs.succeed(autocommit, lease, None)

        assert RoomKeeper().look(autocommit, ["other"]) == 1
        assert [each.run_id for each in shares.take(autocommit, "default", ["other"], shares.Turns(), batch=5)] == [
            free
        ]

    def test_rows_of_limits_go_when_nothing_needs_them(self, start, ask, autocommit, ledger):
        claim = start(limited(Limit("imap:{host}", at_once=1), Limit("rate", most=1000, per=timedelta(days=30))))
        _, held = claim(*ask())
        _, ended = claim(*ask(args={"host": "b"}))
        runs.succeed(autocommit, ended, None)
        ledger.do("UPDATE rota_limits SET used_at = used_at - interval '2 hours'")

        assert limits.delete_unused(autocommit) == 1
        assert {row.name for row in ledger.rows("SELECT name FROM rota_limits")} == {"imap:a", "rate"}
        assert held is not None


def buffers(connection):
    """Return how many pages the dispatcher's check reads."""
    connection.exec_driver_sql("SET enable_seqscan = off; SET plan_cache_mode = force_custom_plan")
    statements = [
        (room.NAMES, {"after": "", "most": 1000}),
        (room.WAKE, {"names": ["smtp"], "most": [500], "run_ids": [], "jobs": ["work"], "carried": False}),
        (room.NEXT, {"names": ["smtp"]}),
    ]
    total = 0
    for statement, values in statements:
        explained = connection.execute(text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}"), values)
        plan = explained.scalar_one()[0]["Plan"]
        total += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return total
