"""Both sides of a chat get a notification when an agent was assigned and when the chat has timed out. It is stored and
published.
"""

from datetime import timedelta

from customer_service_world import NOON
from sqlalchemy import select

from plugins.customer_service.archive import archive_inactive_chats
from plugins.customer_service.models import Notification
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats

LATER = NOON + TIMEOUT


def stored(world, kind):
    rows = select(Notification.chat_id, Notification.created_at, Notification.ends_at).filter_by(kind=kind)
    return [tuple(row) for row in world.session.execute(rows)]


def test_both_sides_are_told_that_an_agent_is_assigned(world, outside):
    chat_id = world.chat("ann", "zoe")

    assert world.told("agent_assigned") == [("user", "ann"), ("agent", "zoe")]
    assert stored(world, "agent_assigned") == [(chat_id, NOON, NOON + TIMEOUT)] * 2
    news = {
        "kind": "agent_assigned",
        "chat_id": chat_id,
        "ends_at": (NOON + TIMEOUT).isoformat(),
        "user_id": "ann",
        "agent_id": "zoe",
    }
    assert outside.published == [
        ("customer_service:notifications:user:ann", {"id": 1, **news}),
        ("customer_service:notifications:agent:zoe", {"id": 2, **news}),
    ]


def test_each_of_many_is_told_of_the_own_agent(world, outside):
    world.agent("yan", capacity=2)
    world.agent("zoe", capacity=2)
    world.waiting("a", "b", "c", "d")

    world.assign()

    told = {message["user_id"]: message["agent_id"] for _, message in outside.published}
    assert told == dict(world.pairs())
    assert len(outside.published) == 8


def test_an_assignment_that_rolls_back_is_told_to_nobody(world):
    world.agent("zoe")
    world.waiting("ann")
    from plugins.customer_service.assignment import assign_batch

    assign_batch(world.session, NOON)
    world.session.rollback()

    assert world.told("agent_assigned") == []


def test_both_sides_are_told_that_the_chat_has_timed_out_and_who_went_quiet(world, outside):
    chat_id = world.chat("ann", "zoe")
    world.says(chat_id, "agent", NOON)
    world.warns()
    outside.published.clear()

    end_quiet_chats(world.session, LATER, checkpoint=world.checkpoint)

    assert world.told("chat_timed_out") == [("user", "ann"), ("agent", "zoe")]
    assert stored(world, "chat_timed_out") == [(chat_id, LATER, LATER)] * 2
    news = {
        "kind": "chat_timed_out",
        "chat_id": chat_id,
        "ends_at": LATER.isoformat(),
        "end_reason": "user_inactive",
    }
    assert [message for _, message in outside.published] == [{"id": 5, **news}, {"id": 6, **news}]


def test_a_chat_that_is_ended_in_order_to_be_archived_is_told_live(world, outside):
    world.chat("ann", "zoe")
    outside.published.clear()

    archive_inactive_chats(world.session, NOON + timedelta(days=30), checkpoint=world.checkpoint)

    assert [(channel, message["kind"]) for channel, message in outside.published] == [
        ("customer_service:notifications:user:ann", "chat_timed_out"),
        ("customer_service:notifications:agent:zoe", "chat_timed_out"),
    ]


def test_a_chat_that_somebody_closed_has_not_timed_out(world):
    world.ends(world.chat())

    assert world.told("chat_timed_out") == []
