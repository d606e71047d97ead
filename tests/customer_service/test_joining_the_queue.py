"""Joining and leaving the queue."""

from datetime import timedelta

from customer_service_world import NOON, at_once
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plugins.customer_service import join_queue, leave_queue
from plugins.customer_service.models import QueueEntry

LATER = NOON + timedelta(seconds=5)


def entries(session):
    return session.scalar(select(func.count()).select_from(QueueEntry))


def test_joining_waits_and_triggers_an_assignment_in_the_same_session(session, outside):
    entry = join_queue(session, "ann", NOON)

    assert (entry.user_id, entry.state, entry.joined_at) == ("ann", "waiting", NOON)
    assert outside.jobs == [(session, "process-customer-service-queue")]


def test_joining_again_keeps_the_place_in_the_queue(session, outside):
    first = join_queue(session, "ann", NOON)
    again = join_queue(session, "ann", LATER)

    assert (again.id, again.joined_at) == (first.id, NOON)
    assert entries(session) == 1
    assert len(outside.jobs) == 1


def test_joining_during_a_chat_returns_the_entry_of_that_chat(world):
    chat_id = world.chat("ann")

    entry = join_queue(world.session, "ann", LATER)

    assert (entry.id, entry.state) == (world.get_chat(chat_id).queue_entry_id, "assigned")
    assert entries(world.session) == 1


def test_joining_after_the_chat_ended_waits_again(world):
    world.ends(world.chat("ann"))

    entry = join_queue(world.session, "ann", LATER)

    assert (entry.state, entry.joined_at) == ("waiting", LATER)
    assert entries(world.session) == 2


def test_a_user_who_joins_in_many_sessions_at_once_waits_once(engine, session):
    def join(_):
        with Session(engine) as own, own.begin():
            return join_queue(own, "ann", NOON).id

    assert len(set(at_once(16, join))) == 1
    assert entries(session) == 1


def test_leaving_takes_a_waiting_user_out(world):
    world.waiting("ann", "bob")

    assert leave_queue(world.session, "ann", LATER) is True
    world.session.commit()

    world.agent("zoe", capacity=5)
    world.assign()
    assert world.pairs() == [("bob", "zoe")]
    assert world.states() == {"ann": "left", "bob": "assigned"}


def test_leaving_is_refused_to_a_user_who_does_not_wait(world):
    world.chat("ann")

    assert leave_queue(world.session, "ann", LATER) is False
    assert leave_queue(world.session, "nobody", LATER) is False


def test_leaving_and_joining_again_goes_to_the_end(world):
    world.waiting("ann", "bob")
    leave_queue(world.session, "ann", LATER)
    join_queue(world.session, "ann", LATER)
    world.session.commit()

    world.agent("zoe", capacity=1)
    world.assign()

    assert world.pairs() == [("bob", "zoe")]
