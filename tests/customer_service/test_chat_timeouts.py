"""Chats without messages end after two minutes."""

from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plugins.customer_service import record_message
from plugins.customer_service.models import Chat
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats

A_MOMENT = timedelta(microseconds=1)


def sweep(world, now, batch=100):
    return end_quiet_chats(world.session, now, checkpoint=world.checkpoint, batch=batch)["ended"]


def test_the_time_out_is_two_minutes():
    assert timedelta(seconds=120) == TIMEOUT


def test_a_chat_a_moment_short_of_the_time_out_goes_on(world):
    chat_id = world.chat()

    assert sweep(world, NOON + TIMEOUT - A_MOMENT) == 0
    assert world.get_chat(chat_id).state == "active"


def test_a_chat_ends_exactly_at_the_time_out_and_frees_the_place(world, outside):
    chat_id = world.chat()
    world.warns()
    world.checkpoints.clear()
    outside.jobs.clear()

    assert sweep(world, NOON + TIMEOUT) == 1

    chat = world.get_chat(chat_id)
    assert (chat.state, chat.ended_at) == ("ended", NOON + TIMEOUT)
    assert world.get_agent().current_chats == 0
    assert world.states() == {"ann": "served"}
    assert [progress["ended"] for progress in world.checkpoints] == [1]
    assert [job for _, job in outside.jobs] == ["process-customer-service-queue"]


@pytest.mark.parametrize(
    ("senders", "reason"),
    [
        ([], "agent_inactive"),
        (["user"], "agent_inactive"),
        (["agent"], "user_inactive"),
        (["user", "agent"], "user_inactive"),
        (["agent", "user"], "agent_inactive"),
    ],
)
def test_the_side_that_owes_the_next_message_went_quiet(world, senders, reason):
    chat_id = world.chat()
    for sender in senders:
        world.says(chat_id, sender, NOON)
    world.warns()

    sweep(world, NOON + TIMEOUT)

    assert world.get_chat(chat_id).end_reason == reason


def test_a_message_starts_the_two_minutes_again(world):
    chat_id = world.chat()
    world.warns()
    world.says(chat_id, "user", NOON + timedelta(seconds=119))

    assert sweep(world, NOON + TIMEOUT) == 0
    assert world.warns(NOON + timedelta(seconds=179)) == 1
    assert sweep(world, NOON + timedelta(seconds=119) + TIMEOUT) == 1


def test_running_twice_ends_nothing_twice(world, check_invariants):
    world.chat()
    world.warns()

    assert sweep(world, NOON + TIMEOUT) == 1
    assert sweep(world, NOON + TIMEOUT) == 0
    check_invariants()


def test_batches_each_end_with_a_checkpoint_and_several_places_of_one_agent_come_free(world, check_invariants):
    world.agent("zoe", capacity=4)
    world.agent("yan", capacity=4)
    world.waiting(*"abcdefg", since=NOON - timedelta(seconds=10))
    world.assign()
    world.warns()
    world.checkpoints.clear()

    assert sweep(world, NOON + TIMEOUT, batch=3) == 7

    assert [progress["ended"] for progress in world.checkpoints] == [3, 6, 7]
    assert (world.get_agent("zoe").current_chats, world.get_agent("yan").current_chats) == (0, 0)
    check_invariants()


def test_a_chat_in_which_a_message_is_arriving_is_left_alone(world, engine):
    chat_id = world.chat()
    world.warns()
    with Session(engine) as writing:
        record_message(writing, chat_id, "user", "wait!", NOON + TIMEOUT)

        assert sweep(world, NOON + TIMEOUT) == 0

        writing.commit()
    assert sweep(world, NOON + TIMEOUT) == 0
    assert world.get_chat(chat_id).state == "active"


def test_four_sweeps_at_once_end_each_chat_once(world, engine, check_invariants):
    for number in range(10):
        world.agent(f"agent-{number}", capacity=20)
    world.waiting(*(f"user-{number}" for number in range(200)), since=NOON - timedelta(seconds=200))
    assert world.assign() == 200
    assert world.warns() == 200

    def one(_):
        with Session(engine) as own:
            return end_quiet_chats(own, NOON + TIMEOUT, checkpoint=lambda progress: own.commit(), batch=7)["ended"]

    assert sum(at_once(4, one)) == 200
    assert world.session.scalar(select(func.count()).where(Chat.state == "active")) == 0
    check_invariants()
