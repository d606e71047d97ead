"""Fifty workers assign two thousand users to a hundred agents at the same time."""

import random
from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from plugins.customer_service import agent_offline, agent_online, end_chat, join_queue, leave_queue
from plugins.customer_service.assignment import assign_batch, assign_waiting_users
from plugins.customer_service.models import Agent, Chat, QueueEntry
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats

WORKERS, USERS, AGENTS = 50, 2000, 100

pytestmark = pytest.mark.slow


def fill(session, capacity):
    """Add users in the order of their numbers, not of their entries, and agents with various capacities and ratings."""
    order = random.Random(7).sample(range(USERS), USERS)
    session.execute(
        insert(QueueEntry),
        [{"user_id": f"user-{n:04}", "joined_at": NOON + timedelta(milliseconds=n)} for n in order],
    )
    session.execute(
        insert(Agent),
        [
            {"id": f"agent-{n:03}", "name": "", "capacity": capacity(n), "rating": n % 6, "is_online": True}
            for n in range(AGENTS)
        ],
    )
    session.commit()


def assign_in_many_threads(engine):
    def work(_):
        with Session(engine) as own:
            return assign_waiting_users(own, NOON, checkpoint=lambda progress: own.commit())["assigned"]

    return sum(at_once(WORKERS, work))


@pytest.mark.parametrize(
    ("capacity", "places"),
    [
        pytest.param(lambda number: 30, USERS, id="plenty"),
        pytest.param(lambda number: number % 7, sum(n % 7 for n in range(AGENTS)), id="scarce"),
        pytest.param(lambda number: int(number == 50), 1, id="a single place"),
    ],
)
def test_nobody_twice_no_agent_over_capacity_and_the_order_kept(engine, session, capacity, places, check_invariants):
    fill(session, capacity)

    assert assign_in_many_threads(engine) == places

    assigned = session.scalars(select(Chat.user_id).order_by(Chat.id)).all()
    assert assigned == [f"user-{number:04}" for number in range(places)]
    check_invariants()


def test_load_is_spread_evenly_over_equal_agents(engine, session):
    fill(session, lambda number: 20)

    assign_in_many_threads(engine)

    assert set(session.scalars(select(Agent.current_chats))) == {USERS // AGENTS}


def test_the_order_is_kept_when_batches_fail(engine, session, check_invariants):
    """Every third batch is rolled back, as if its worker had been killed. No user who joined later is served before."""
    fill(session, lambda number: number % 3)
    places = sum(number % 3 for number in range(AGENTS))

    def work(index):
        dice, placed = random.Random(index), 0
        with Session(engine) as own:
            for _ in range(30):
                number = assign_batch(own, NOON)
                if dice.random() < 1 / 3:
                    own.rollback()
                else:
                    own.commit()
                    placed += number
        return placed

    assert sum(at_once(20, work)) == places

    assigned = session.scalars(select(Chat.user_id).order_by(Chat.id)).all()
    assert assigned == [f"user-{number:04}" for number in range(places)]
    check_invariants()


def test_everything_at_once_keeps_the_counts_and_never_deadlocks(engine, session, check_invariants):
    """Users join and leave, chats end and time out, agents come and go, and batches are placed. A deadlock would raise
    an error.
    """
    fill(session, lambda number: 1 + number % 3)

    def work(index):
        dice = random.Random(index)
        with Session(engine) as own:
            for turn in range(40):
                happen(own, dice, f"new-{index}-{turn}")
                own.commit()

    at_once(16, work)

    check_invariants()


def happen(session, dice, newcomer):
    what = dice.randrange(20)
    agent_id = f"agent-{dice.randrange(AGENTS):03}"
    if what in {0, 1}:
        join_queue(session, newcomer, NOON)
    elif what in {2, 3}:
        leave_queue(session, f"user-{dice.randrange(USERS):04}", NOON)
    elif what in {4, 5, 6, 7}:
        chat_id = session.scalar(select(Chat.id).where(Chat.state == "active").offset(dice.randrange(20)).limit(1))
        if chat_id is not None:
            end_chat(session, chat_id, NOON, by="user")
    elif what in {8, 9}:
        agent_offline(session, agent_id)
    elif what in {10, 11, 12}:
        agent_online(session, agent_id)
    elif what == 13:
        end_quiet_chats(session, NOON + TIMEOUT, checkpoint=lambda progress: session.commit(), batch=5)
    else:
        assign_batch(session, NOON)
