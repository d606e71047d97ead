"""I8: `rota why JOB --key K --at T` answers for any slot of any key, also after changes, in outages and pauses."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import Keyed, cron, every, job, pause_schedule, resume_schedule, schedule, unschedule
from core.jobs.grid import grid
from core.ledger import key_slots
from core.operations import why
from core.plugins import loading

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


@pytest.fixture
def poll():
    return job("poll", queue="mail", keyed=Keyed(default=every(seconds=60)))(lambda run: None)


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def leader(lead, poll, session):
    """Return a leader that has seen a schedule of one minute, of the key 42, for five minutes."""
    leader = lead(poll)
    schedule(session, "poll", key="42")
    session.commit()
    leader.passes(SECOND)
    leader.began_at = leader.now
    leader.passes(5 * MINUTE)
    return leader


@pytest.fixture
def ask(database):
    """Ask about one second. Return the answer as sentences."""

    def ask(at, key="42"):
        with database.connect() as connection:
            return why.ask(connection, loading.current(), "poll", at=at.isoformat(), key=key)

    return ask


@pytest.fixture
def slot_after(ledger):
    """Return the next slot of the present schedule."""

    def slot_after(instant):
        (row,) = ledger.rows("SELECT * FROM rota_key_schedules WHERE key = '42'")
        return grid(row.spec, row.phase).next_after(instant)

    return slot_after


def text_of(found):
    return "\n".join(found.answer)


def test_a_slot_with_a_run_has_the_story_of_its_run(leader, ask, slot_after):
    found = ask(slot_after(leader.began_at))

    assert found.slot == slot_after(leader.began_at)
    assert found.runs[0].key == "42"


def test_a_time_between_slots_names_the_nearest_ones(leader, ask, slot_after):
    slot = slot_after(leader.began_at)

    found = text_of(ask(slot + 5 * SECOND))

    assert "was not due for the key '42'" in found
    assert f"{slot:%H:%M:%S} UTC and" in found


def test_a_slot_of_the_schedule_before_a_change_is_known(leader, ask, slot_after, session, ledger):
    slot = slot_after(leader.began_at)
    schedule(session, "poll", key="42", every=10 * MINUTE)
    session.commit()
    leader.passes(MINUTE)
    ledger.do("DELETE FROM rota_runs")

    assert "is not on record" in text_of(ask(slot))
    assert ask(slot).slot == slot


def test_a_time_before_the_first_schedule_and_after_its_removal_has_no_schedule(leader, ask, session):
    assert "Its first schedule has slots after" in text_of(ask(leader.began_at - MINUTE))

    unschedule(session, "poll", key="42")
    session.commit()
    leader.passes(SECOND)

    assert "had no schedule for the key '42'" in text_of(ask(leader.now + 5 * MINUTE))
    assert "removed by an application" in text_of(ask(leader.now + 5 * MINUTE))


def test_a_slot_in_a_pause_is_explained_while_it_lasts_and_after_it(leader, ask, session, slot_after):
    pause_schedule(session, "poll", key="42", reason="wrong password", by="ann")
    session.commit()
    paused_at = leader.now
    leader.passes(5 * MINUTE)
    slot = slot_after(paused_at + MINUTE)

    assert "its key is paused by ann" in text_of(ask(slot))
    assert "wrong password" in text_of(ask(slot))

    resume_schedule(session, "poll", key="42")
    session.commit()
    leader.passes(SECOND)
    leader.passes(2 * MINUTE)
    assert "its key was paused then" in text_of(ask(slot))


def test_a_slot_in_an_outage_is_explained(leader, ask, slot_after):
    stopped_at = leader.now
    leader.is_replaced()
    leader.pass_at(leader.now + timedelta(hours=1))

    found = text_of(ask(slot_after(stopped_at + 10 * MINUTE)))

    assert "no dispatcher led then" in found
    assert "of all keys of the job have no runs" in found


def test_a_slot_that_a_backoff_left_out_is_explained(leader, ask, slot_after, ledger):
    ledger.do("UPDATE rota_key_schedules SET stretch = 3, is_seen = false, version = version + 1")
    began_at = leader.now
    leader.passes(10 * MINUTE)
    (row,) = ledger.rows("SELECT * FROM rota_key_schedules")
    due = set(grid(row.spec, row.phase, 3).between(began_at, leader.now))
    left_out = next(slot for slot in grid(row.spec, row.phase).between(began_at, leader.now) if slot not in due)

    assert "only one slot in 8 comes due" in text_of(ask(left_out))


def test_each_slot_of_a_cron_key_in_a_backoff_has_a_run_or_is_explained(leader, ask, session, ledger):
    schedule(session, "poll", key="42", cron=cron("*/7 * * * *", tz="Asia/Kolkata"), spread=5 * MINUTE)
    session.commit()
    leader.passes(MINUTE)
    began_at = leader.now
    ledger.do("UPDATE rota_key_schedules SET stretch = 2, failures = 4, is_seen = false, version = version + 1")
    leader.passes(3 * HOUR, step=20 * SECOND)
    ended_at = leader.now
    session.commit()
    resume_schedule(session, "poll", key="42")
    session.commit()
    leader.passes(HOUR, step=20 * SECOND)

    (row,) = ledger.rows("SELECT * FROM rota_key_schedules")
    slots = list(grid(row.spec, row.phase).between(began_at, ended_at))
    told = {slot: ask(slot) for slot in slots}
    left_out = [slot for slot in slots if not told[slot].runs]
    assert all("only the first slot in each 28 min comes due" in text_of(told[slot]) for slot in left_out)
    assert len(slots) - len(left_out) in (6, 7)
    ((reason, count),) = ledger.rows("SELECT reason, slots FROM rota_gaps")
    assert (reason, count) == ("backoff", len(left_out))
    assert all(ask(slot).runs for slot in grid(row.spec, row.phase).between(ended_at, leader.now))


def test_a_schedule_whose_time_zone_this_host_lacks_is_told_of(leader, ask, ledger):
    for table in ("rota_key_schedules", "rota_key_schedule_log"):
        ledger.do(f"UPDATE {table} SET spec = '0 3 * * * Nowhere/Land'")

    assert "this host lacks its time zone" in text_of(ask(leader.now))


def test_a_slot_to_come_is_told_of(leader, ask, slot_after):
    assert "has yet to come" in text_of(ask(slot_after(leader.now + timedelta(days=2))))


def test_a_key_that_never_had_a_schedule_is_told_of(leader, ask):
    assert "The ledger has no run of poll with the key '7'" in text_of(ask(leader.now, key="7"))


@pytest.mark.parametrize("is_replaced", [False, True], ids=["same leader", "new leader"])
def test_a_slot_that_came_due_as_its_schedule_was_removed_is_explained(
    leader, ask, slot_after, session, monkeypatch, is_replaced
):
    """The removal is committed after the schedules were read and before their slots are inserted."""
    slot = slot_after(leader.now)
    leader.passes(slot - leader.now - SECOND)
    insert = key_slots.insert

    def insert_after_removal(*args, **options):
        unschedule(session, "poll", key="42")
        session.commit()
        return insert(*args, **options)

    monkeypatch.setattr(key_slots, "insert", insert_after_removal)
    assert leader.pass_at(slot) == 0
    monkeypatch.setattr(key_slots, "insert", insert)
    if is_replaced:
        leader.is_replaced()
    leader.passes(2 * SECOND)

    found = ask(slot)
    assert found.runs == []
    assert "had no schedule for the key '42'" in text_of(found)
    assert "removed by an application" in text_of(found)
