"""Schedules made at run time: the functions that applications call in their own transactions."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import (
    Keyed,
    KeySchedule,
    Run,
    Subject,
    Synced,
    cron,
    every,
    job,
    pause_schedule,
    resume_schedule,
    schedule,
    schedules,
    sync_schedules,
    unschedule,
)
from core.errors import BadArguments, NaiveTime, RotaError, ScheduleError, UnknownJob
from core.ledger import key_schedules
from tests.support.racing import race

MINUTE = timedelta(minutes=1)
KEYED = Keyed(default=every(seconds=60))


@job("poll", queue="mail", keyed=KEYED)
def poll(run: Run, account: int = 0) -> None:
    """Poll a mailbox."""


@job("clear", queue="mail")
def clear(run: Run) -> None:
    """Do nothing. This job has no schedules."""


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    use_jobs(poll, clear)


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def rows(ledger):
    return lambda: ledger.rows("SELECT * FROM rota_key_schedules ORDER BY key")


def test_a_schedule_exists_if_the_callers_transaction_commits(session, rows):
    assert schedule(session, "poll", key="42", every=MINUTE)
    session.rollback()
    assert rows() == []

    assert schedule(session, "poll", key="42", every=MINUTE, args={"account": 42}, priority=3)
    session.commit()

    (row,) = rows()
    assert (row.job, row.key, row.spec, row.every_seconds) == ("poll", "42", "every 1m", 60)
    assert (row.args, row.priority, row.plugin, row.since) == ({"account": 42}, 3, "tests", None)
    assert 0 <= row.phase < 60


def test_the_same_schedule_again_changes_nothing(session, rows):
    schedule(session, "poll", key="42", every=MINUTE, args={"account": 1})
    session.commit()
    before = rows()

    assert not schedule(session, "poll", key="42", every=MINUTE, args={"account": 1})
    session.commit()

    assert rows() == before


def test_a_key_without_a_schedule_of_its_own_gets_the_default(session, rows):
    schedule(session, "poll", key="42")
    session.commit()

    assert rows()[0].spec == "every 1m"


def test_a_change_waits_beside_what_is_in_force_until_the_dispatcher_sees_it(session, rows, ledger):
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    ledger.do("UPDATE rota_key_schedules SET since = now(), is_seen = true")

    assert schedule(session, "poll", key="42", every=2 * MINUTE)
    session.commit()

    (row,) = rows()
    assert (row.spec, row.next_spec, row.next_every_seconds, row.is_seen) == ("every 1m", "every 2m", 120, False)
    assert schedules(session, "poll")[0].spec == "every 2m"

    assert schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    assert (rows()[0].spec, rows()[0].next_spec) == ("every 1m", None)


def test_new_arguments_leave_the_slots_where_they_are(session, rows, ledger):
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    ledger.do("UPDATE rota_key_schedules SET since = now(), is_seen = true")
    (before,) = rows()

    assert schedule(session, "poll", key="42", every=MINUTE, args={"account": 7}, priority=9)
    session.commit()

    (row,) = rows()
    assert (row.args, row.priority) == ({"account": 7}, 9)
    assert (row.phase, row.since, row.next_spec, row.is_seen) == (before.phase, before.since, None, True)
    assert row.version > before.version


def test_first_now_requests_a_run_in_the_same_transaction(session, ledger):
    schedule(session, "poll", key="42", every=MINUTE, first="now", args={"account": 42})
    schedule(session, "poll", key="42", every=MINUTE, first="now", args={"account": 42})
    session.commit()

    (run,) = ledger.runs("poll")
    assert (run.key, run.slot, run.args, run.state) == ("42", None, {"account": 42}, "queued")


def test_removing_a_schedule_ends_its_waiting_slots_and_leaves_requests_and_started_runs(session, ledger):
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    waiting = ledger.request("poll", key="42", slot=datetime(2026, 1, 1, tzinfo=UTC))
    tried = ledger.request("poll", key="42", slot=datetime(2026, 1, 2, tzinfo=UTC), state="retrying", attempt=1)
    other = ledger.request("poll", key="43", slot=datetime(2026, 1, 1, tzinfo=UTC))
    request = ledger.request("poll", key="42")

    assert unschedule(session, "poll", key="42")
    session.commit()

    assert (ledger.run(waiting).state, ledger.run(waiting).reason) == ("skipped", "unscheduled")
    assert [ledger.run(each).state for each in (tried, other, request)] == ["retrying", "queued", "queued"]
    assert not unschedule(session, "poll", key="42")


def test_a_schedule_that_is_removed_and_made_again_is_another_one(session, rows):
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    (before,) = rows()

    unschedule(session, "poll", key="42")
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()

    assert rows()[0].id != before.id


def test_no_upsert_ends_a_pause(session):
    schedule(session, "poll", key="42", every=MINUTE)
    pause_schedule(session, "poll", key="42", reason="wrong password", by="ann")
    session.commit()

    schedule(session, "poll", key="42", every=2 * MINUTE)
    sync_schedules(session, "poll", [KeySchedule("42", 3 * MINUTE)])
    session.commit()

    (found,) = schedules(session, "poll")
    assert (found.paused_by, found.pause_reason, found.paused_until, found.next_at) == (
        "ann", "wrong password", None, None
    )  # fmt: skip

    assert resume_schedule(session, "poll", key="42")
    session.commit()
    (found,) = schedules(session, "poll")
    assert found.paused_at is None
    assert found.next_at is not None
    assert not resume_schedule(session, "poll", key="42")


def test_a_resume_ends_the_back_off_of_a_key_that_is_not_paused(session, rows, ledger):
    schedule(session, "poll", key="42", every=MINUTE)
    session.commit()
    ledger.do("UPDATE rota_key_schedules SET stretch = 2, failures = 4, is_seen = true")

    assert resume_schedule(session, "poll", key="42")
    assert not resume_schedule(session, "poll", key="42")
    session.commit()

    (row,) = rows()
    assert (row.stretch, row.failures, row.is_seen, row.paused_at, row.paused_by) == (0, 0, False, None, None)


def test_a_sync_adds_changes_and_removes(session, rows):
    sync_schedules(session, "poll", [KeySchedule(str(number), MINUTE) for number in range(10)])
    session.commit()

    wanted = [KeySchedule(str(number), MINUTE) for number in range(1, 11)]
    wanted[0] = KeySchedule("1", 2 * MINUTE)
    assert sync_schedules(session, "poll", wanted) == Synced(added=1, changed=1, removed=1, kept=8)
    session.commit()

    assert {row.key for row in rows()} == {str(number) for number in range(1, 11)}
    assert sync_schedules(session, "poll", wanted) == Synced(0, 0, 0, 10)


@pytest.mark.parametrize("args", [{}, {"account": 7}, {"note": 'Grüße "☃"', "account": 1, "ratio": 1.5}], ids=str)
def test_a_sync_knows_the_arguments_that_are_stored(session, rows, use_jobs, args):
    def work(run, account: int = 0, note: str = "", ratio: float = 0):
        pass

    use_jobs(job("poll", keyed=KEYED)(work))
    sync_schedules(session, "poll", [KeySchedule("1", MINUTE, args=args)])
    session.commit()
    before = rows()

    assert sync_schedules(session, "poll", [KeySchedule("1", MINUTE, args=args)]) == Synced(0, 0, 0, 1)
    assert rows() == before
    assert before[0].args == args
    assert sync_schedules(session, "poll", [KeySchedule("1", MINUTE, args={"account": 8})]).changed == 1


def test_a_sync_that_would_remove_more_than_half_is_refused(session, rows):
    sync_schedules(session, "poll", [KeySchedule(str(number), MINUTE) for number in range(4)])
    session.commit()

    with pytest.raises(ScheduleError, match=r"wants 0 schedules and would remove 4 of 4.*most_removed=1.0"):
        sync_schedules(session, "poll", [])
    with pytest.raises(ScheduleError, match="would remove 3 of 4"):
        sync_schedules(session, "poll", [KeySchedule("0", MINUTE)])

    assert len(rows()) == 4
    assert sync_schedules(session, "poll", [], most_removed=1.0).removed == 4


def test_a_sync_leaves_other_jobs_alone(session, rows, use_jobs):
    other = job("other", keyed=KEYED)(lambda run: None)
    use_jobs(poll, other)
    schedule(session, "other", key="1")
    schedule(session, "poll", key="1")

    sync_schedules(session, "poll", [], most_removed=1.0)
    session.commit()

    assert [row.job for row in rows()] == ["other"]


def test_a_key_that_is_wanted_twice_is_refused(session):
    with pytest.raises(BadArguments, match="1 keys are wanted twice"):
        sync_schedules(session, "poll", [KeySchedule("1", MINUTE), KeySchedule("1", 2 * MINUTE)])


@pytest.mark.parametrize("is_one_by_one", [True, False], ids=["one by one", "together"])
def test_a_thousand_keys_spread_evenly_over_their_interval(session, rows, is_one_by_one):
    wanted = [KeySchedule(f"account-{number}", MINUTE) for number in range(1000)]
    if is_one_by_one:
        for each in wanted:
            schedule(session, "poll", key=each.key, every=each.every)
    else:
        sync_schedules(session, "poll", wanted)
    session.commit()

    counts = Counter(row.phase for row in rows())

    assert max(counts.values()) <= 1.5 * 1000 / 60
    assert len(counts) == 60


def test_changed_intervals_spread_evenly_too(session, rows, ledger):
    sync_schedules(session, "poll", [KeySchedule(str(number), MINUTE) for number in range(1000)])
    session.commit()
    ledger.do("UPDATE rota_key_schedules SET since = now(), is_seen = true")

    for number in range(1000):
        schedule(session, "poll", key=str(number), every=timedelta(seconds=30))
    session.commit()

    assert max(Counter(row.next_phase for row in rows()).values()) <= 1.5 * 1000 / 30


def test_cron_is_spread_over_the_given_time(session, rows):
    for number in range(100):
        schedule(session, "poll", key=str(number), cron=cron("0 3 * * *", tz="Europe/London"), spread=10 * MINUTE)
    session.commit()

    found = rows()
    assert {(row.spec, row.every_seconds, row.spread_seconds) for row in found} == {
        ("0 3 * * * Europe/London", None, 600)
    }
    assert len({row.phase for row in found}) > 50
    assert max(row.phase for row in found) < 600


def test_two_that_schedule_one_key_at_once_both_succeed(database, rows):
    def put(interval):
        with Session(database) as session, session.begin():
            return schedule(session, "poll", key="42", every=interval)

    race(lambda: put(MINUTE), lambda: put(2 * MINUTE))

    assert len(rows()) == 1
    assert rows()[0].spec in {"every 1m", "every 2m"}


def test_a_schedule_is_listed_after_another_key(session):
    sync_schedules(session, "poll", [KeySchedule(str(number), MINUTE) for number in range(5)])

    assert [each.key for each in schedules(session, "poll", after="1", limit=2)] == ["2", "3"]


def test_the_next_slot_is_that_of_the_phase(session):
    schedule(session, "poll", key="42", every=MINUTE)

    (found,) = schedules(session, "poll")

    now = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    assert now < found.next_at <= now + MINUTE
    assert int(found.next_at.timestamp()) % 60 == found.phase


def test_the_subject_of_its_runs_is_stored(session, rows, use_jobs):
    about = job("about", keyed=KEYED, subject=Subject("accounts", "account"))(poll.function)
    use_jobs(about)

    schedule(session, "about", key="1", args={"account": 5})
    session.commit()

    assert rows()[0].subject == "accounts:5"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"key": ""}, "key must be a string of 1 to 500 characters"),
        ({"key": "a\0b"}, "none of them NUL"),
        ({"every": timedelta(seconds=1)}, r"the interval 0:00:01 must be 0:00:10 to 1 day"),
        ({"every": timedelta(days=2)}, "the interval 2 days, 0:00:00 must be"),
        ({"every": timedelta(seconds=10.5)}, "must be a timedelta of whole seconds"),
        ({"every": 60}, "must be a timedelta of whole seconds"),
        ({"every": MINUTE, "cron": cron("* * * * *")}, "every and cron contradict each other"),
        ({"cron": "* * * * *"}, r"must be made by cron"),
        ({"spread": MINUTE}, "spread=0:01:00 is for cron"),
        ({"cron": cron("0 3 * * *"), "spread": -MINUTE}, "must be a timedelta of whole seconds, 0 or more"),
        ({"first": "soon"}, "first='soon' must be 'spread' or 'now'"),
        ({"priority": 10}, "priority=10 must be a whole number, 0 to 9"),
        ({"args": {"accuont": 1}}, "accuont"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(session, rows, options, expected):
    with pytest.raises(BadArguments, match=expected):
        schedule(session, "poll", **{"key": "42", **options})

    session.commit()
    assert rows() == []


def test_a_job_that_takes_no_key_is_refused(session):
    with pytest.raises(ScheduleError, match=r"job 'clear' takes no schedules made at run time.*keyed=Keyed"):
        schedule(session, "clear", key="42", every=MINUTE)
    with pytest.raises(UnknownJob, match="did you mean 'poll'"):
        schedule(session, "pol", key="42", every=MINUTE)


def test_a_key_without_a_schedule_cannot_be_paused(session):
    with pytest.raises(ScheduleError, match="job 'poll' has no schedule for the key '42'"):
        pause_schedule(session, "poll", key="42")


def test_a_pause_ends_in_the_future(session):
    schedule(session, "poll", key="42")

    with pytest.raises(BadArguments, match="is past"):
        pause_schedule(session, "poll", key="42", until=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(NaiveTime, match="has no time zone"):
        pause_schedule(session, "poll", key="42", until=datetime(2099, 1, 1, tzinfo=UTC).replace(tzinfo=None))
    with pytest.raises(BadArguments, match="must be a datetime"):
        pause_schedule(session, "poll", key="42", until=MINUTE)


def test_too_many_schedules_are_refused(session, monkeypatch):
    monkeypatch.setenv("ROTA_MOST_SCHEDULES", "3")
    sync_schedules(session, "poll", [KeySchedule(str(number)) for number in range(3)])
    session.commit()

    with pytest.raises(ScheduleError, match=r"more than 3 schedules \(ROTA_MOST_SCHEDULES\)"):
        schedule(session, "poll", key="42")
    session.rollback()
    with pytest.raises(ScheduleError, match="more than 3 schedules"):
        sync_schedules(session, "poll", [KeySchedule(str(number)) for number in range(4)])


def test_another_type_of_session_is_refused():
    with pytest.raises(RotaError, match="session must be a SQLAlchemy Session"):
        schedule(object(), "poll", key="42")


def test_the_schema_of_the_ledger_is_found_from_any_search_path(session, rows):
    session.execute(text("SET LOCAL search_path TO pg_catalog"))
    schedule(session, "poll", key="42")
    pause_schedule(session, "poll", key="42")
    assert len(schedules(session, "poll")) == 1
    sync_schedules(session, "poll", [KeySchedule("42")])
    session.commit()

    assert len(rows()) == 1


def test_any_key_and_any_argument_is_stored_as_it_is(session, rows):
    odd = ['a"b', "back\\slash", "{brace}", "NULL", "null", "comma,", " space ", "tab\t", "snö☃", "'", "%s", ":colon"]
    wanted = [KeySchedule(key, MINUTE, args={"account": number}) for number, key in enumerate(odd)]

    sync_schedules(session, "poll", wanted)
    session.commit()

    assert {row.key: row.args["account"] for row in rows()} == {key: number for number, key in enumerate(odd)}
    assert sync_schedules(session, "poll", wanted) == Synced(0, 0, 0, len(odd))


def test_a_session_in_autocommit_syncs_many_keys(database, rows, monkeypatch):
    monkeypatch.setattr(key_schedules, "MANY", 2)

    with Session(database.execution_options(isolation_level="AUTOCOMMIT")) as session:
        sync_schedules(session, "poll", [KeySchedule(str(number)) for number in range(3)])

    assert len(rows()) == 3


@pytest.mark.parametrize("many", [1, 1000], ids=["many", "few"])
def test_a_key_that_another_transaction_adds_during_a_sync_is_changed(database, session, rows, monkeypatch, many):
    monkeypatch.setattr(key_schedules, "MANY", many)

    def wanted():
        with Session(database) as other, other.begin():
            schedule(other, "poll", key="42", every=5 * MINUTE)
        yield KeySchedule("42", MINUTE)

    assert sync_schedules(session, "poll", wanted()) == Synced(0, 1, 0, 0)
    session.commit()

    assert [(row.key, row.spec) for row in rows()] == [("42", "every 1m")]
