"""The database's clock decides, and a time without a zone is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from customer_service_world import NOON
from sqlalchemy import func, select

from core import NaiveTime
from plugins.customer_service import end_chat, join_queue, leave_queue, record_message
from plugins.customer_service.archive import archive_inactive_chats, remove_left_entries
from plugins.customer_service.assignment import assign_batch, assign_waiting_users
from plugins.customer_service.models import Chat, Message, Notification, QueueEntry
from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import end_quiet_chats

NAIVE = datetime(2026, 1, 5, 12)  # noqa: DTZ001 - that is the point


def nothing(progress=None):
    """Commit nothing."""


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda session, now: join_queue(session, "new", now), id="join_queue"),
        pytest.param(lambda session, now: leave_queue(session, "waits", now), id="leave_queue"),
        pytest.param(lambda session, now: record_message(session, 1, "user", "hello", now), id="record_message"),
        pytest.param(lambda session, now: end_chat(session, 1, now, by="user"), id="end_chat"),
        pytest.param(lambda session, now: assign_batch(session, now), id="assign_batch"),
        pytest.param(lambda session, now: assign_waiting_users(session, now, checkpoint=nothing), id="assign"),
        pytest.param(lambda session, now: warn_quiet_chats(session, now, checkpoint=nothing), id="warn"),
        pytest.param(lambda session, now: end_quiet_chats(session, now, checkpoint=nothing), id="time_out"),
        pytest.param(lambda session, now: archive_inactive_chats(session, now, checkpoint=nothing), id="archive"),
        pytest.param(lambda session, now: remove_left_entries(session, now, checkpoint=nothing), id="remove"),
    ],
)
@pytest.mark.parametrize("now", [NAIVE, "2026-01-05"])
def test_a_time_without_a_zone_is_refused_and_nothing_is_done(world, act, now):
    world.chat("ann")
    world.waiting("waits")
    world.agent("idle")
    before = snapshot(world)

    with pytest.raises(NaiveTime, match="now="):
        act(world.session, now)

    world.session.rollback()
    assert snapshot(world) == before


def test_users_wait_in_the_order_of_the_databases_clock(world):
    join_queue(world.session, "first")
    world.session.commit()
    join_queue(world.session, "second")
    world.session.commit()
    world.agent("zoe", capacity=2)

    world.assign(world.session.scalar(select(func.clock_timestamp())))

    assert world.pairs() == [("first", "zoe"), ("second", "zoe")]


def test_without_a_time_it_is_the_databases_even_late_in_a_long_transaction(world):
    chat_id = world.chat("ann")
    begun_at = world.session.scalar(select(func.now()))
    assert begun_at < world.session.scalar(select(func.clock_timestamp()))

    record_message(world.session, chat_id, "user", "hello")
    join_queue(world.session, "new")
    world.waiting("leaves")
    leave_queue(world.session, "leaves")
    end_chat(world.session, chat_id, by="user")

    chat, (left_at,) = (
        world.get_chat(chat_id),
        world.session.execute(select(QueueEntry.left_at).filter_by(state="left")).one(),
    )
    joined_at = world.session.scalar(select(QueueEntry.joined_at).filter_by(user_id="new"))
    sent_at = world.session.scalar(select(Message.sent_at))
    ended_by = world.session.scalar(select(func.clock_timestamp()))
    assert begun_at < sent_at < joined_at < left_at < chat.ended_at < ended_by
    assert chat.last_activity_at == sent_at


def test_the_zone_of_a_time_does_not_matter(world):
    from zoneinfo import ZoneInfo

    join_queue(world.session, "ann", NOON.astimezone(ZoneInfo("Asia/Tokyo")))

    assert world.session.scalar(select(QueueEntry.joined_at)) == NOON


def test_times_are_read_in_utc_whatever_the_zone_of_the_connection(world):
    chat_id = world.chat("ann")
    world.session.execute(func.set_config("TimeZone", "America/New_York", True).select())

    assert world.get_chat(chat_id).started_at.utcoffset() == timedelta(0)
    assert world.get_chat(chat_id).started_at.tzinfo is UTC


def snapshot(world):
    """Return the rows that a function could have made or changed."""
    tables = (Chat, Message, Notification, QueueEntry)
    return [world.session.execute(select(table.__table__).order_by(table.id)).all() for table in tables]
