"""Metrics of schedules made at run time: their number, the lateness of their slots, and gaps."""

from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.orm import Session

from core import Keyed, KeySchedule, every, job, pause_schedule, sync_schedules
from core.dispatcher.key_watch import LOOK_SECONDS, KeyWatch
from core.observability import metrics

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


@pytest.fixture
def poll():
    return job("metred", queue="mail", keyed=Keyed(default=every(seconds=60), least=SECOND))(lambda run: None)


@pytest.fixture
def leader(lead, poll, database):
    """Return a leader that has seen five keys, one of which is paused."""
    leader = lead(poll)
    with Session(database) as session, session.begin():
        sync_schedules(session, "metred", [KeySchedule(f"ann@example{number}.org", MINUTE) for number in range(5)])
        pause_schedule(session, "metred", key="ann@example3.org")
    leader.passes(2 * SECOND)
    return leader


def value(name, **labels):
    return REGISTRY.get_sample_value(name, {"task": "metred", **labels})


def states():
    return {state: value("rota_schedules", state=state) for state in ("active", "paused", "backing_off")}


def test_schedules_are_counted_by_job_and_state_once_a_minute(leader, ledger):
    watch = KeyWatch()
    ledger.do("UPDATE rota_key_schedules SET stretch = 2 WHERE key IN ('ann@example1.org', 'ann@example3.org')")

    watch.look(leader.connection, now=0.0)
    assert states() == {"active": 3, "paused": 1, "backing_off": 1}

    ledger.do("DELETE FROM rota_key_schedules")
    watch.look(leader.connection, now=LOOK_SECONDS - 1)
    assert states() == {"active": 3, "paused": 1, "backing_off": 1}
    watch.look(leader.connection, now=LOOK_SECONDS)
    assert states() == {"active": 0, "paused": 0, "backing_off": 0}


def test_the_lag_is_the_time_since_slots_were_last_recorded(leader):
    leader.passes(3 * SECOND)
    assert value("rota_schedules_lag_seconds") == 1

    leader.pass_at(leader.now + 40 * SECOND)
    assert value("rota_schedules_lag_seconds") == 40


def test_the_lag_counts_from_the_stored_watermark_if_another_process_led_before(leader, ledger):
    leader.passes(15 * SECOND)
    stored = ledger.value("SELECT accounted_until FROM rota_schedules")
    leader.is_replaced()

    leader.pass_at(leader.now + 40 * SECOND)

    assert value("rota_schedules_lag_seconds") == (leader.now - stored).total_seconds()


def test_slots_without_runs_are_counted_by_reason(leader):
    before = value("rota_schedules_gap_slots_total", reason="outage") or 0

    leader.pass_at(leader.now + 5 * MINUTE)

    # four keys have slots, and only slots of the last half minute have runs
    assert 16 <= value("rota_schedules_gap_slots_total", reason="outage") - before <= 20


def test_another_process_that_leads_resets_the_numbers(leader):
    KeyWatch().look(leader.connection)
    leader.pass_at(leader.now + 40 * SECOND)

    metrics.leading(False)

    assert states() == {"active": 0, "paused": 0, "backing_off": 0}
    assert value("rota_schedules_lag_seconds") == 0


def test_no_label_has_a_key(leader):
    KeyWatch().look(leader.connection)
    leader.pass_at(leader.now + 5 * MINUTE)

    samples = [sample for family in REGISTRY.collect() for sample in family.samples if "schedules" in sample.name]
    assert samples
    assert "ann@" not in str(samples)
