"""Chats inactive for thirty days move to the archive."""

from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plugins.customer_service import UnknownChat, leave_queue, record_message
from plugins.customer_service.archive import archive_inactive_chats, remove_left_entries
from plugins.customer_service.models import ArchivedChat, ArchivedMessage, Chat, Message, Notification, QueueEntry
from plugins.customer_service.timeout_warnings import warn_quiet_chats

MONTH = timedelta(days=30)
A_MOMENT = timedelta(microseconds=1)


def sweep(world, now, batch=500):
    counts = archive_inactive_chats(world.session, now, checkpoint=world.checkpoint, batch=batch)
    return {name: counts[name] for name in ("archived", "ended")}


def count(world, table):
    return world.session.scalar(select(func.count()).select_from(table))


def test_a_chat_a_moment_short_of_thirty_days_stays(world):
    world.ends(world.chat())

    assert sweep(world, NOON + MONTH - A_MOMENT) == {"archived": 0, "ended": 0}
    assert count(world, Chat) == 1


def test_after_exactly_thirty_days_everything_of_the_chat_has_moved_or_gone(world):
    chat_id = world.chat("ann", "zoe")
    warn_quiet_chats(world.session, NOON + timedelta(minutes=1), checkpoint=world.checkpoint)
    world.says(chat_id, "agent", NOON, "good day")
    world.says(chat_id, "user", NOON, "good day to you")
    world.ends(chat_id, NOON + timedelta(seconds=9))

    assert sweep(world, NOON + MONTH) == {"archived": 1, "ended": 0}

    chat = world.session.scalars(select(ArchivedChat)).one()
    assert (chat.id, chat.user_id, chat.agent_id, chat.last_sender) == (chat_id, "ann", "zoe", "user")
    assert (chat.joined_at, chat.started_at, chat.last_activity_at) == (NOON, NOON, NOON)
    assert (chat.ended_at, chat.end_reason) == (NOON + timedelta(seconds=9), "closed_by_user")
    assert chat.archived_at == NOON + MONTH
    messages = world.session.scalars(select(ArchivedMessage).order_by(ArchivedMessage.id)).all()
    assert [(m.chat_id, m.sender, m.text, m.sent_at) for m in messages] == [
        (chat_id, "agent", "good day", NOON),
        (chat_id, "user", "good day to you", NOON),
    ]
    assert [count(world, table) for table in (Chat, Message, Notification, QueueEntry)] == [0, 0, 0, 0]


def test_a_chat_still_active_after_thirty_days_is_ended_first_and_its_place_freed(world, outside):
    chat_id = world.chat()
    world.says(chat_id, "agent", NOON)
    outside.jobs.clear()

    assert sweep(world, NOON + MONTH) == {"archived": 1, "ended": 1}

    chat = world.session.scalars(select(ArchivedChat)).one()
    assert (chat.ended_at, chat.end_reason) == (NOON + MONTH, "user_inactive")
    assert world.get_agent().current_chats == 0
    assert [job for _, job in outside.jobs] == ["process-customer-service-queue"]


def test_running_twice_archives_nothing_twice(world):
    world.ends(world.chat())

    assert sweep(world, NOON + MONTH)["archived"] == 1
    assert sweep(world, NOON + MONTH)["archived"] == 0
    assert count(world, ArchivedChat) == 1


def test_each_batch_ends_with_a_checkpoint(world, check_invariants):
    world.agent("zoe", capacity=5)
    world.waiting(*"abcde", since=NOON - timedelta(seconds=10))
    world.assign()
    world.ends(1)
    world.checkpoints.clear()

    assert sweep(world, NOON + MONTH, batch=2) == {"archived": 5, "ended": 4}

    assert [progress["archived"] for progress in world.checkpoints] == [2, 4, 5]
    assert world.get_agent().current_chats == 0
    check_invariants()


def test_a_crash_between_batches_loses_nothing(world):
    world.agent("zoe", capacity=4)
    world.waiting(*"abcd", since=NOON - timedelta(seconds=10))
    world.assign()

    def crash_on_the_second(progress):
        if progress["archived"] > 2:
            raise ConnectionError
        world.session.commit()

    with pytest.raises(ConnectionError):
        archive_inactive_chats(world.session, NOON + MONTH, checkpoint=crash_on_the_second, batch=2)
    world.session.rollback()
    assert (count(world, Chat), count(world, ArchivedChat)) == (2, 2)

    assert sweep(world, NOON + MONTH)["archived"] == 2
    assert (count(world, Chat), count(world, ArchivedChat)) == (0, 4)


def test_an_archived_chat_takes_no_message_and_its_user_may_join_again(world):
    chat_id = world.chat("ann")
    sweep(world, NOON + MONTH)

    with pytest.raises(UnknownChat):
        record_message(world.session, chat_id, "user", "hello?", NOON + MONTH)
    world.session.rollback()
    world.waiting("ann", since=NOON + MONTH)

    assert world.assign(NOON + MONTH) == 1


def test_four_sweeps_at_once_archive_each_chat_once(world, engine):
    world.agent("zoe", capacity=60)
    world.waiting(*(f"user-{number}" for number in range(60)), since=NOON - timedelta(seconds=60))
    world.assign()

    def one(_):
        with Session(engine) as own:
            return archive_inactive_chats(own, NOON + MONTH, checkpoint=lambda progress: own.commit(), batch=7)

    done = at_once(4, one)

    assert sum(counts["archived"] for counts in done) == sum(counts["ended"] for counts in done) == 60
    assert count(world, ArchivedChat) == 60
    assert world.get_agent().current_chats == 0


def test_entries_of_users_who_left_are_removed_after_thirty_days(world):
    world.waiting("left", "waits")
    leave_queue(world.session, "left", NOON)
    world.session.commit()

    def remove(now):
        return remove_left_entries(world.session, now, checkpoint=world.checkpoint, batch=1)["removed"]

    assert remove(NOON + MONTH - A_MOMENT) == 0
    assert remove(NOON + MONTH) == 1
    assert world.states() == {"waits": "waiting"}
