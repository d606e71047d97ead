"""Messages of chats; and every chat ends once."""

from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import select
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from plugins.customer_service import ChatEnded, UnknownChat, chats, end_chat, join_queue, record_message
from plugins.customer_service.models import Message
from plugins.customer_service.timeouts import end_quiet_chats

SOON = NOON + timedelta(seconds=30)
JOB = "process-customer-service-queue"


def test_a_message_is_stored_and_counts_as_activity(world):
    chat_id = world.chat()

    world.says(chat_id, "user", SOON, "good morning")

    message = world.session.scalars(select(Message)).one()
    assert (message.chat_id, message.sender, message.text, message.sent_at) == (chat_id, "user", "good morning", SOON)
    chat = world.get_chat(chat_id)
    assert (chat.last_activity_at, chat.last_sender) == (SOON, "user")


def test_activity_never_goes_back_when_clocks_differ(world):
    chat_id = world.chat()
    world.says(chat_id, "user", SOON)

    world.says(chat_id, "agent", NOON)

    chat = world.get_chat(chat_id)
    assert (chat.last_activity_at, chat.last_sender) == (SOON, "agent")


def test_a_message_to_an_ended_chat_is_refused(world):
    chat_id = world.chat()
    world.ends(chat_id)

    with pytest.raises(ChatEnded, match=f"chat {chat_id} has ended"):
        record_message(world.session, chat_id, "user", "anyone there?", SOON)

    assert world.session.scalars(select(Message)).all() == []


def test_a_message_to_an_unknown_chat_is_refused(session):
    with pytest.raises(UnknownChat, match="unknown chat 404"):
        record_message(session, 404, "user", "hello", NOON)


def test_a_message_from_neither_side_is_refused(world):
    with pytest.raises(ValueError, match="'robot'"):
        record_message(world.session, world.chat(), "robot", "hello", NOON)


def test_the_text_is_in_no_error(world):
    chat_id = world.chat()

    with pytest.raises((StatementError, ValueError)) as refused:
        record_message(world.session, chat_id, "user", "my card number is 4929\x00", NOON)

    assert "4929" not in str(refused.value)


def test_the_text_is_in_no_error_even_where_the_engine_would_show_it(world):
    with pytest.raises(StatementError) as refused, chats._text_kept_out_of_errors():
        raise StatementError("no", "INSERT", {"text": "4929"}, ValueError("no"))

    assert "4929" not in str(refused.value)


def test_ending_frees_the_place_and_triggers_an_assignment(world, outside):
    chat_id = world.chat()
    outside.jobs.clear()

    assert end_chat(world.session, chat_id, SOON, by="agent") is True

    chat = world.get_chat(chat_id)
    assert (chat.state, chat.ended_at, chat.end_reason) == ("ended", SOON, "closed_by_agent")
    assert world.get_agent().current_chats == 0
    assert world.states() == {"ann": "served"}
    assert outside.jobs == [(world.session, JOB)]


def test_ending_twice_frees_the_place_once(world, outside):
    chat_id = world.chat()
    world.ends(chat_id, SOON, by="user")
    outside.jobs.clear()

    assert world.ends(chat_id, SOON + timedelta(seconds=1), by="agent") is False

    chat = world.get_chat(chat_id)
    assert (chat.ended_at, chat.end_reason) == (SOON, "closed_by_user")
    assert world.get_agent().current_chats == 0
    assert outside.jobs == []


def test_an_end_that_rolls_back_did_not_happen(world):
    chat_id = world.chat()

    end_chat(world.session, chat_id, SOON, by="user")
    world.session.rollback()

    assert world.get_chat(chat_id).state == "active"
    assert world.get_agent().current_chats == 1


def test_ending_an_unknown_chat_is_refused(session):
    with pytest.raises(UnknownChat, match="unknown chat 404"):
        end_chat(session, 404, NOON, by="user")


def test_ending_by_neither_side_is_refused(world):
    with pytest.raises(ValueError, match="'robot'"):
        end_chat(world.session, world.chat(), NOON, by="robot")


@pytest.mark.parametrize("attempt", range(5))
def test_many_sessions_ending_one_chat_free_its_place_once(world, engine, attempt, check_invariants):
    chat_id = world.chat()

    def end(_):
        with Session(engine) as own, own.begin():
            return end_chat(own, chat_id, SOON, by="user")

    assert sum(at_once(8, end)) == 1
    assert world.get_agent().current_chats == 0
    check_invariants()


@pytest.mark.parametrize("attempt", range(5))
def test_an_end_and_the_time_out_at_once_free_the_place_once(world, engine, attempt, check_invariants):
    chat_id = world.chat()
    world.warns()
    late = NOON + timedelta(minutes=2)

    assert sum(at_once(8, lambda index: _in_own_transactions(engine, chat_id, late, index))) == 1
    assert world.get_agent().current_chats == 0
    check_invariants()


def _in_own_transactions(engine, chat_id, late, index):
    with Session(engine) as own:
        if index % 2:
            ended = int(end_chat(own, chat_id, late, by="user"))
        else:
            ended = end_quiet_chats(own, late, checkpoint=lambda progress: own.commit())["ended"]
        own.commit()
        return ended


def test_the_freed_place_goes_to_the_next_in_line(world):
    chat_id = world.chat("ann")
    join_queue(world.session, "bob", NOON)
    world.ends(chat_id)

    world.assign()

    assert world.pairs() == [("ann", "zoe"), ("bob", "zoe")]
