"""Customer service with real workers and a real scheduler, and with an application that has no Redis."""

import time
from statistics import median

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from plugins.customer_service import agent_online, join_queue, register_agent
from tests.support.eventually import eventually

pytestmark = pytest.mark.crash

CHAT = "SELECT * FROM customer_service_chats WHERE user_id = :user"
QUIET = text("""
    UPDATE customer_service_chats
    SET last_activity_at = clock_timestamp() - make_interval(secs => :quiet),
        warned_at = clock_timestamp() - make_interval(secs => :warned)
    WHERE user_id = :user
""")
WARNINGS = (
    "SELECT recipient_kind FROM customer_service_notifications WHERE chat_id = :chat AND kind = 'timeout_warning'"
)
#: Two jobs are due every 30 s.
NEXT_SLOT_SECONDS = 32


@pytest.fixture
def service(make_fleet):
    """Start a worker, a scheduler, and an agent with free places."""
    fleet = make_fleet(jobs="none")
    fleet.together(fleet.worker, fleet.scheduler)
    with Session(fleet.engine) as session, session.begin():
        register_agent(session, "ada", "Ada", capacity=40)
        agent_online(session, "ada")
    return fleet


def test_users_who_join_are_given_an_agent_within_a_second(service, record_property):
    waits = [wait_for_agent(service, f"user-{number}") for number in range(20)]

    record_property("join_to_agent_median_max", f"{median(waits):.3f} {max(waits):.3f}")
    assert median(waits) < 1
    (ada,) = service.rows("SELECT current_chats FROM customer_service_agents")
    assert ada.current_chats == 20


def test_quiet_chats_are_warned_once_and_those_that_were_warned_end(service):
    for user in ("quiet", "forgotten", "gone"):
        wait_for_agent(service, user)
    with service.engine.begin() as connection:
        connection.execute(QUIET, {"user": "quiet", "quiet": 61, "warned": None})
        connection.execute(QUIET, {"user": "forgotten", "quiet": 3600, "warned": None})
        connection.execute(QUIET, {"user": "gone", "quiet": 121, "warned": 61})
    (quiet,), (forgotten,) = service.rows(CHAT, user="quiet"), service.rows(CHAT, user="forgotten")

    eventually(lambda: service.rows(WARNINGS, chat=quiet.id), within=NEXT_SLOT_SECONDS)
    eventually(lambda: service.rows(WARNINGS, chat=forgotten.id), within=NEXT_SLOT_SECONDS)
    (gone,) = eventually(lambda: service.rows(f"{CHAT} AND state = 'ended'", user="gone"), within=NEXT_SLOT_SECONDS)
    warned_again = service.request("send-timeout-warnings", queue="customer_service")
    eventually(lambda: service.runs("send-timeout-warnings")[-1].state == "succeeded")

    assert service.runs("send-timeout-warnings")[-1].id >= warned_again[0]
    assert sorted(row.recipient_kind for row in service.rows(WARNINGS, chat=quiet.id)) == ["agent", "user"]
    assert service.rows(WARNINGS, chat=gone.id) == []
    assert len(service.rows(f"{CHAT} AND state = 'active'", user="forgotten")) == 1
    assert len(service.rows(WARNINGS, chat=forgotten.id)) == 2
    assert gone.end_reason in {"user_inactive", "agent_inactive"}
    (ada,) = service.rows("SELECT current_chats FROM customer_service_agents")
    assert ada.current_chats == 2


def wait_for_agent(service, user: str) -> float:
    """Let the user join. Return the seconds from the commit until the chat exists."""
    with Session(service.engine) as session, session.begin():
        join_queue(session, user)
    joined_at = time.monotonic()
    eventually(lambda: service.rows(CHAT, user=user), within=35, every=0.01)
    return time.monotonic() - joined_at
