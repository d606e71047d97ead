"""Both sides are warned a minute before the time-out, once per quiet period."""

from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.customer_service.models import Notification
from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import TIMEOUT

MINUTE = timedelta(minutes=1)
A_MOMENT = timedelta(microseconds=1)


def sweep(world, now, batch=100):
    return warn_quiet_chats(world.session, now, checkpoint=world.checkpoint, batch=batch)["warned"]


def told(world):
    """Return the kind and the id of the recipient of every notification, in order."""
    return world.told("timeout_warning")


def test_a_moment_short_of_a_minute_nobody_is_warned(world):
    world.chat()

    assert sweep(world, NOON + MINUTE - A_MOMENT) == 0
    assert told(world) == []


def test_after_exactly_a_minute_both_sides_are_warned(world, outside):
    chat_id = world.chat("ann", "zoe")
    world.checkpoints.clear()
    outside.published.clear()

    assert sweep(world, NOON + MINUTE) == 1

    assert told(world) == [("user", "ann"), ("agent", "zoe")]
    assert [progress["warned"] for progress in world.checkpoints] == [1]
    push = {"kind": "timeout_warning", "chat_id": chat_id, "ends_at": (NOON + TIMEOUT).isoformat()}
    assert outside.published == [
        ("customer_service:notifications:user:ann", {"id": 3, **push}),
        ("customer_service:notifications:agent:zoe", {"id": 4, **push}),
    ]


def test_a_stored_notification_says_when_the_chat_ends(world):
    chat_id = world.chat()
    sweep(world, NOON + MINUTE)

    stored = world.session.scalars(select(Notification).where(Notification.kind == "timeout_warning").limit(1)).one()

    assert (stored.chat_id, stored.kind, stored.created_at) == (chat_id, "timeout_warning", NOON + MINUTE)
    assert stored.ends_at == NOON + TIMEOUT


def test_nobody_is_warned_twice_for_the_same_last_message(world):
    world.says(world.chat(), "user", NOON + timedelta(seconds=5))

    assert sweep(world, NOON + timedelta(seconds=65)) == 1
    assert sweep(world, NOON + timedelta(seconds=65)) == 0
    assert sweep(world, NOON + timedelta(seconds=95)) == 0
    assert len(told(world)) == 2


def test_new_activity_allows_a_new_warning(world):
    chat_id = world.chat()
    sweep(world, NOON + MINUTE)
    world.says(chat_id, "agent", NOON + timedelta(seconds=70))

    assert sweep(world, NOON + timedelta(seconds=129)) == 0
    assert sweep(world, NOON + timedelta(seconds=130)) == 1
    assert len(told(world)) == 4


def test_a_chat_that_has_ended_is_not_warned(world):
    world.ends(world.chat())

    assert sweep(world, NOON + MINUTE) == 0


def test_a_chat_a_moment_short_of_the_time_out_is_still_warned(world):
    world.chat()

    assert sweep(world, NOON + TIMEOUT - A_MOMENT) == 1


def test_a_warning_that_rolls_back_is_given_later(world):
    world.chat()
    with pytest.raises(ConnectionError):
        warn_quiet_chats(world.session, NOON + MINUTE, checkpoint=_lose_the_lease)
    world.session.rollback()
    assert told(world) == []

    assert sweep(world, NOON + MINUTE) == 1
    assert len(told(world)) == 2


def _lose_the_lease(progress):
    raise ConnectionError


def test_four_sweeps_at_once_warn_each_chat_once(world, engine):
    world.agent("zoe", capacity=120)
    world.waiting(*(f"user-{number}" for number in range(120)), since=NOON - timedelta(seconds=120))
    world.assign(NOON)

    def one(_):
        with Session(engine) as own:
            return warn_quiet_chats(own, NOON + MINUTE, checkpoint=lambda progress: own.commit(), batch=7)["warned"]

    assert sum(at_once(4, one)) == 120
    users = [recipient for kind, recipient in told(world) if kind == "user"]
    assert len(users) == len(set(users)) == 120
