"""I2, I4, I8 for schedules made at run time: each slot of each key has one outcome, whichever processes die."""

import pytest
from sqlalchemy.orm import Session

from core import KeySchedule, sync_schedules
from core.plugins import loading
from core.testing import registry_of
from tests.support import chaos
from tests.support.eventually import eventually
from tests.support.supervised import supervised

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

#: Each key is due once a second.
KEYS = 20
UNFINISHED = """
    SELECT 1 FROM rota_runs WHERE job = 'poll' AND slot <= :until AND state IN ('queued', 'running', 'retrying')
"""
#: How many slots came due up to ``until``, how many runs they have, and how many slots got no run.
ACCOUNT = """
    SELECT (SELECT sum(extract(epoch FROM date_trunc('second', CAST(:until AS timestamptz)))
                       - extract(epoch FROM date_trunc('second', since)))
            FROM rota_key_schedules) AS due,
           (SELECT count(*) FROM rota_runs WHERE job = 'poll' AND slot <= :until) AS runs,
           (SELECT coalesce(sum(slots), 0) FROM rota_gaps WHERE job = 'poll') AS left_out
"""
STATES = "SELECT DISTINCT state FROM rota_runs WHERE job = 'poll' AND slot <= :until"
#: Runs whose number of effects does not match their state.
WRONG = """
    SELECT run.id, run.key, run.slot, run.state, count(effect.id) AS effects
    FROM rota_runs AS run LEFT JOIN effects AS effect ON effect.run_id = run.id
    WHERE run.job = 'poll' AND run.slot <= :until
    GROUP BY run.id HAVING count(effect.id) <> CASE WHEN run.state = 'succeeded' THEN 1 ELSE 0 END
"""


def give_schedules(fleet):
    wanted = [KeySchedule(f"key-{number}") for number in range(KEYS)]
    with loading.using(registry_of(chaos.poll, plugin="chaos")), Session(fleet.engine) as session, session.begin():
        sync_schedules(session, "poll", wanted)


def polls(fleet):
    return fleet.rows("SELECT count(*) AS polls FROM effects WHERE job = 'poll'")[0].polls


def poll_on(fleet, count=2 * KEYS):
    """Wait until so many further slots have succeeded."""
    wanted = polls(fleet) + count
    eventually(lambda: polls(fleet) >= wanted, within=60)


def assert_each_slot_has_one_outcome(fleet):
    """Assert that each slot until now has one outcome, after the last of these slots has ended."""
    poll_on(fleet)
    ((until,),) = fleet.rows("SELECT accounted_until FROM rota_schedules WHERE job = 'poll'")
    eventually(lambda: not fleet.rows(UNFINISHED, until=until), within=60)

    ((due, runs, left_out),) = fleet.rows(ACCOUNT, until=until)
    assert due == runs + left_out
    assert fleet.rows(WRONG, until=until) == []
    assert {row.state for row in fleet.rows(STATES, until=until)} <= {"succeeded", "skipped", "missed"}


def test_each_slot_has_one_outcome_when_the_leader_and_another_worker_are_killed(make_fleet):
    fleet = make_fleet(jobs="poll")
    give_schedules(fleet)
    fleet.together(*[lambda: fleet.worker(threads=4)] * 2)
    poll_on(fleet)

    fleet.kill(fleet.group_of(fleet.leader()))
    poll_on(fleet)
    fleet.worker(threads=4)
    leader = fleet.group_of(fleet.leader())
    (follower,) = [each for each in fleet.processes if each.poll() is None and each is not leader]
    fleet.kill(follower)

    assert_each_slot_has_one_outcome(fleet)


def test_slots_come_due_while_redis_is_away_and_when_it_is_back_empty(make_fleet, own_redis):
    fleet = make_fleet(jobs="poll", redis_url=own_redis.url)
    give_schedules(fleet)
    fleet.worker(threads=4)
    poll_on(fleet)

    own_redis.kill()
    eventually(lambda: "redis.away" in fleet.logs(), within=60)
    poll_on(fleet)
    own_redis.start()
    fleet.redis.flushall()
    eventually(lambda: "redis.back" in fleet.logs(), within=60)

    assert_each_slot_has_one_outcome(fleet)


def test_each_slot_has_one_outcome_in_local_mode_when_the_one_process_is_killed(make_fleet):
    fleet = make_fleet(jobs="poll", environ={"SCHEDULER_MODE": "local", "REDIS_URL": ""})
    give_schedules(fleet)
    with supervised(fleet, threads=4) as worker:
        poll_on(fleet)
        (killed,) = [process for process in worker.processes() if process.pid in worker.pids()]

        killed.kill()

        eventually(lambda: worker.pids() not in ([], [killed.pid]), within=60)
        assert_each_slot_has_one_outcome(fleet)
