"""After an outage of workers or the scheduler, no chat ends without a warning and a minute to answer."""

from datetime import timedelta

import pytest
from customer_service_world import NOON

from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats

MINUTE = timedelta(minutes=1)
A_MOMENT = timedelta(microseconds=1)
BACK = NOON + timedelta(hours=1)


def end_quiet(world, now):
    counts = end_quiet_chats(world.session, now, checkpoint=world.checkpoint)
    return counts["ended"], counts["warned"]


@pytest.mark.parametrize("warned_first", [True, False], ids=["warnings first", "time-outs first"])
def test_chats_that_nobody_warned_are_warned_and_get_their_minute(world, warned_first):
    chat_id = world.chat("ann", "zoe")
    if warned_first:
        assert world.warns(BACK) == 1

    assert end_quiet(world, BACK) == (0, 0 if warned_first else 1)

    assert world.get_chat(chat_id).state == "active"
    assert world.told("timeout_warning") == [("user", "ann"), ("agent", "zoe")]
    assert end_quiet(world, BACK + MINUTE - A_MOMENT) == (0, 0)
    assert end_quiet(world, BACK + MINUTE) == (1, 0)


def test_the_warning_says_when_the_chat_ends(world, outside):
    world.chat()
    outside.published.clear()

    world.warns(BACK)

    assert {message["ends_at"] for _, message in outside.published} == {(BACK + MINUTE).isoformat()}


def test_a_message_in_that_minute_keeps_the_chat(world):
    chat_id = world.chat()
    world.warns(BACK)
    world.says(chat_id, "user", BACK + MINUTE - A_MOMENT)

    assert end_quiet(world, BACK + MINUTE) == (0, 0)
    assert end_quiet(world, BACK + MINUTE + TIMEOUT - A_MOMENT) == (0, 1)


def test_a_chat_that_was_warned_before_the_outage_is_not_warned_again(world):
    world.chat()
    world.warns(NOON + MINUTE)

    assert world.warns(BACK) == 0
    assert end_quiet(world, BACK) == (1, 0)


def test_a_warning_that_came_late_leaves_its_minute_too(world):
    world.chat()
    late = NOON + TIMEOUT - A_MOMENT
    world.warns(late)

    assert end_quiet(world, NOON + TIMEOUT) == (0, 0)
    assert end_quiet(world, late + MINUTE) == (1, 0)


def test_the_time_out_warns_nobody_whose_time_has_not_come(world):
    world.chat()

    assert end_quiet(world, NOON + TIMEOUT - A_MOMENT) == (0, 0)
    assert warn_quiet_chats(world.session, NOON + MINUTE, checkpoint=world.checkpoint)["warned"] == 1
