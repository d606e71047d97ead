"""Applications call several functions in one transaction, at the same time as other applications and the sweeps, on
real sessions.

PostgreSQL ends a transaction that is part of a deadlock with an error after a second. The tests would raise this error.
"""

import random
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from plugins.customer_service import (
    agent_offline,
    end_chat,
    join_queue,
    leave_queue,
    record_message,
    set_capacity,
)
from plugins.customer_service.archive import archive_inactive_chats
from plugins.customer_service.assignment import assign_batch, assign_waiting_users
from plugins.customer_service.models import Agent, Chat
from plugins.customer_service.places import count_again
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats

LATE = NOON + TIMEOUT
MONTH = NOON + timedelta(days=30)


@pytest.fixture
def chats(world):
    """Make two agents with two chats each that have timed out. Return the ids of the chats by user."""
    for agent_id in ("yan", "zoe"):
        world.agent(agent_id, capacity=2)
    world.waiting("y1", "z1", "y2", "z2", since=NOON - timedelta(seconds=9))
    world.assign()
    assert world.pairs() == [("y1", "yan"), ("z1", "zoe"), ("y2", "yan"), ("z2", "zoe")]
    world.warns()
    return dict(world.session.execute(select(Chat.user_id, Chat.id)).all())


def race(engine, *transactions):
    """Run each function as one transaction, all at the same time. All complete a step before any of them begins the
    next.
    """
    barrier = threading.Barrier(len(transactions))

    def work(index):
        done = []
        with Session(engine) as own, own.begin():
            for step in transactions[index]:
                barrier.wait(timeout=20)
                done.append(step(own))
        return done

    return at_once(len(transactions), work)


def end(chat_id):
    return lambda session: end_chat(session, chat_id, LATE, by="user")


def says(chat_id):
    return lambda session: record_message(session, chat_id, "user", "hello", LATE)


def goes_offline(agent_id):
    return lambda session: agent_offline(session, agent_id)


def settle(world):
    """Return what the next time-out sweep does besides ending chats."""
    count_again(world.session)
    world.session.commit()


def test_two_transactions_that_each_end_chats_of_the_same_agents_in_opposite_orders(
    world, engine, chats, check_invariants
):
    ended = race(engine, [end(chats["y1"]), end(chats["z1"])], [end(chats["z2"]), end(chats["y2"])])

    assert ended == [[True, True], [True, True]]
    settle(world)
    check_invariants()


def test_two_transactions_that_end_the_same_chats_in_opposite_orders(world, engine, chats, check_invariants):
    ended = race(engine, [end(chats["y1"]), end(chats["z1"])], [end(chats["z1"]), end(chats["y1"])])

    assert ended == [[True, False], [True, False]]
    assert {world.get_chat(chats[user]).state for user in ("y1", "z1")} == {"ended"}
    settle(world)
    check_invariants()


@pytest.mark.parametrize("user", ["z1", "z2"])
def test_an_agent_who_goes_offline_and_ends_a_chat_beside_another_end_of_it(
    world, engine, chats, user, check_invariants
):
    first, second = race(engine, [goes_offline("zoe"), end(chats[user])], [lambda session: None, end(chats[user])])

    assert first[1] != second[1]
    settle(world)
    check_invariants()


def test_many_who_say_a_last_word_and_end_their_chats_free_all_places(world, engine, check_invariants):
    world.agent("zoe", capacity=12)
    world.waiting(*(f"user-{number}" for number in range(12)), since=NOON - timedelta(seconds=12))
    world.assign()

    race(engine, *([says(chat_id), end(chat_id)] for chat_id in range(1, 13)))

    assert world.get_agent("zoe").current_chats == 0
    check_invariants()


def test_a_last_word_before_going_offline_beside_an_end_of_the_chat(world, engine, chats, check_invariants):
    race(engine, [says(chats["z1"]), goes_offline("zoe")], [lambda session: None, end(chats["z1"])])

    assert world.get_chat(chats["z1"]).state == "ended"
    assert world.get_agent("zoe").is_online is False
    check_invariants()


def test_a_last_word_after_going_offline_beside_an_end_of_the_chat(world, engine, chats, check_invariants):
    with Session(engine) as leaving:
        agent_offline(leaving, "zoe")

        def act(index):
            if index == 1:
                with Session(engine) as own, own.begin():
                    return end_chat(own, chats["z1"], LATE, by="user")
            wait_until_blocked(engine)
            record_message(leaving, chats["z1"], "agent", "good-bye", LATE)
            leaving.commit()
            return None

        assert at_once(2, act) == [None, True]
    check_invariants()


def wait_until_blocked(engine):
    """Wait until a session of this database waits for a lock of another session."""
    blocked = text("SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0")
    while True:
        with engine.connect() as connection:
            if connection.scalar(blocked):
                return


def test_a_last_word_before_the_end_beside_an_end_of_the_chat(engine, chats, check_invariants):
    _, (_, ended) = race(engine, [lambda session: None, end(chats["z1"])], [says(chats["z1"]), end(chats["z1"])])

    assert ended in {True, False}
    check_invariants()


@contextmanager
def holding(engine, act):
    """Yield a transaction that has made a change and continues. It is rolled back at the end."""
    with Session(engine) as session:
        act(session)
        yield session


SWEEPS = {
    "auto-end-timeout-chats": lambda session: end_quiet_chats(session, LATE, checkpoint=lambda progress: None),
    "cleanup-long-inactive-chats": lambda session: archive_inactive_chats(
        session, MONTH, checkpoint=lambda progress: None
    ),
}
#: The rows of zoe that an application may hold, and the functions that it may call afterwards.
HELD = {
    "agent_offline": goes_offline("zoe"),
    "set_capacity": lambda session: set_capacity(session, "zoe", 3),
    "the agent's row": lambda session: session.execute(select(Agent).where(Agent.id == "zoe").with_for_update()),
    "the entry's row": lambda session: session.execute(
        text("SELECT * FROM customer_service_queue_entries WHERE user_id LIKE 'z%' FOR UPDATE")
    ),
    "end_chat": lambda session: end_chat(session, 2, LATE, by="user"),
    "record_message": lambda session: record_message(session, 2, "user", "hello", LATE),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("job", SWEEPS)
def test_a_sweep_passes_over_what_an_application_holds_and_never_waits_for_it(world, engine, chats, job, held):
    with holding(engine, HELD[held]) as application, Session(engine) as own:
        own.execute(text("SET LOCAL lock_timeout = 1"))

        counts = SWEEPS[job](own)

        assert counts["left"] >= 1
        assert counts["ended"] >= 2  # the chats of the other agent
        own.commit()
        application.commit()


@pytest.mark.parametrize("held", ["agent_offline", "set_capacity", "end_chat", "record_message"])
def test_an_application_ends_a_chat_while_a_sweep_is_in_the_middle(world, engine, chats, held, check_invariants):
    """The sweep holds all rows that it could lock, and the application calls a second function for one of its chats."""
    with holding(engine, HELD[held]) as application, Session(engine) as sweeping:
        end_quiet_chats(sweeping, LATE, checkpoint=lambda progress: None)

        def act(index):
            if index == 0:
                ended = end_chat(application, chats["y1"], LATE, by="user")
                application.commit()
                return ended
            sweeping.commit()
            return None

        assert at_once(2, act) == [False, None]
    settle(world)
    check_invariants()


def test_a_batch_holds_no_user_while_it_waits_for_the_oldest(world, engine):
    """An application removes two users from the queue, the later user first, while a batch needs both."""
    world.agent("zoe", capacity=3)
    world.waiting("ann", "bob", "cat")

    def leave_both(index):
        if index == 1:
            with Session(engine) as own:
                return assign_waiting_users(own, NOON, checkpoint=lambda progress: own.commit())["assigned"]
        with Session(engine) as own, own.begin():
            leave_queue(own, "bob", NOON)
            leave_queue(own, "ann", NOON)
        return 0

    for _ in range(10):
        at_once(2, leave_both)
        with Session(engine) as own, own.begin():
            for chat_id in own.scalars(select(Chat.id).where(Chat.state == "active")).all():
                end_chat(own, chat_id, NOON, by="user")
            for user in ("ann", "bob", "cat"):
                leave_queue(own, user, NOON)
                join_queue(own, user, NOON)


def test_a_chat_ends_although_its_agent_is_held_and_the_place_is_counted_later(world, engine, chats):
    with holding(engine, goes_offline("zoe")), Session(engine) as own, own.begin():
        record_message(own, chats["z1"], "user", "thank you", LATE)
        assert end_chat(own, chats["z1"], LATE, by="user") is True

    assert world.get_agent("zoe").current_chats == 2
    settle(world)
    assert world.get_agent("zoe").current_chats == 1


@pytest.mark.slow
def test_anything_twice_in_one_transaction_never_deadlocks_beside_the_sweeps(world, engine, check_invariants):
    for number in range(6):
        world.agent(f"agent-{number}", capacity=10)
    world.waiting(*(f"user-{number}" for number in range(60)), since=NOON - timedelta(seconds=60))
    world.assign()
    world.warns()

    def work(index):
        dice = random.Random(index)
        for _ in range(25):
            with Session(engine) as own, own.begin():
                _two_calls(own, dice, index)

    at_once(10, work)
    settle(world)
    check_invariants()


def _two_calls(session, dice, index):
    if index < 2:
        end_quiet_chats(session, LATE, checkpoint=lambda progress: None, batch=3)
    elif index == 2:
        assign_batch(session, LATE)
    else:
        for chat_id in dice.sample(range(1, 61), 2):
            end_chat(session, chat_id, LATE, by="agent")  # in any order
        if dice.random() < 0.5:
            join_queue(session, f"new-{dice.randrange(10**9)}", LATE)
