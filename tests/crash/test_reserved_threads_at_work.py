"""``ROTA_RESERVED_THREADS``: a user who joins the queue is served at once, although all other threads are busy."""

import time

import pytest
from sqlalchemy.orm import Session

from plugins.customer_service import agent_online, join_queue, register_agent
from tests.support.emitted import logged
from tests.support.eventually import eventually
from tests.support.supervised import supervised

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

SLOW, CLEANUP = "cleanup-expired-cache", "cleanup-long-inactive-chats"
RESERVED = {"ROTA_RESERVED_THREADS": "customer_service=2", "CHAOS_SLOW": f"{SLOW},{CLEANUP}"}
RUNNING = "SELECT id FROM rota_runs WHERE job = :job AND state = 'running'"
CHAT = "SELECT * FROM customer_service_chats WHERE user_id = :user"


def wait_for_agent(fleet, user: str) -> float:
    """Let the user join. Return the seconds from the commit until the chat exists."""
    with Session(fleet.engine) as session, session.begin():
        join_queue(session, user)
    joined_at = time.monotonic()
    eventually(lambda: fleet.rows(CHAT, user=user), within=10, every=0.01)
    return time.monotonic() - joined_at


@pytest.mark.parametrize("mode", ["auto", "auto without Redis", "local"])
def test_a_user_who_joins_is_served_within_a_second_while_maintenance_occupies_the_threads(
    make_fleet, mode, record_property
):
    """Slow jobs of the same queue do not take the last reserved thread."""
    environ = {**RESERVED, "SCHEDULER_MODE": mode.split()[0]}
    without_redis = {"redis_url": "redis://127.0.0.1:1"} if mode == "auto without Redis" else {}
    fleet = make_fleet(jobs="none", environ=environ, **without_redis)
    with Session(fleet.engine) as session, session.begin():
        register_agent(session, "ada", "Ada", capacity=40)
        agent_online(session, "ada")

    with supervised(fleet, processes=1, threads=8):
        fleet.request(SLOW, 20, queue="maintenance")
        eventually(lambda: len(fleet.rows(RUNNING, job=SLOW)) == 6, within=20)
        fleet.request(CLEANUP, 5, queue="customer_service")
        eventually(lambda: len(fleet.rows(RUNNING, job=CLEANUP)) == 1, within=20)
        waits = [wait_for_agent(fleet, f"user-{number}") for number in range(10)]
        (worker,) = fleet.registered("worker")
        running = [len(fleet.rows(RUNNING, job=job)) for job in (SLOW, CLEANUP)]

    record_property("join_to_agent_max_seconds", round(max(waits), 3))
    assert max(waits) < 1
    assert running == [6, 1], "the slow jobs were running all the time"
    assert worker.reserved == {"customer_service": 2}


@pytest.mark.parametrize(
    "command", ["dramatiq core.main --processes 1 --threads 2", "rota worker --processes 1 --threads 2"]
)
def test_a_worker_with_too_few_threads_does_not_start(make_fleet, command):
    fleet = make_fleet(jobs="touch", environ=RESERVED)

    assert fleet.start(*command.split()).wait(60) != 0

    assert "ROTA_RESERVED_THREADS reserves 2 threads of each worker process, which has 2 in all" in fleet.logs()
    assert "Traceback" not in fleet.logs()


def test_a_local_worker_with_too_few_threads_does_not_start(make_fleet):
    fleet = make_fleet(jobs="touch", environ={**RESERVED, "SCHEDULER_MODE": "local", "REDIS_URL": ""})

    assert fleet.start("rota", "worker", "--threads", "2").wait(60) == 2

    assert "give it at least 3 threads" in fleet.logs()
    assert fleet.registered("worker") == []


def test_threads_for_a_queue_that_no_job_uses_are_not_reserved_and_said(make_fleet):
    fleet = make_fleet(jobs="touch", environ={"ROTA_RESERVED_THREADS": "chaoss=2"})
    fleet.worker(threads=1)
    fleet.request("touch")
    eventually(lambda: fleet.effects("touch"))

    (told,) = list(logged(fleet.logs(), "reservation.unused"))
    assert (told["queue"], told["suggestion"]) == ("chaoss", "; did you mean 'chaos'?")
