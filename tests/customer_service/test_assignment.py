"""The assignment of users to agents, batch by batch."""

from datetime import timedelta

import pytest
from customer_service_world import NOON, at_once
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from plugins.customer_service import agent_offline, assignment, leave_queue
from plugins.customer_service.assignment import assign_batch, assign_waiting_users
from plugins.customer_service.models import Agent, Chat, QueueEntry


def test_nobody_waiting_is_nothing_to_do(world):
    world.agent("zoe")

    assert world.assign() == 0
    assert world.checkpoints == []


def test_the_oldest_are_placed_first(world):
    world.waiting("late", since=NOON + timedelta(minutes=1))
    world.waiting("early", since=NOON)
    world.agent("zoe", capacity=1)

    assert world.assign() == 1

    assert world.pairs() == [("early", "zoe")]
    assert world.states() == {"late": "waiting", "early": "assigned"}


def test_users_who_joined_at_the_same_instant_are_placed_in_the_order_of_their_entries(world):
    for user in ("first", "second", "third"):
        world.waiting(user)
    world.agent("zoe", capacity=2)

    world.assign()

    assert world.pairs() == [("first", "zoe"), ("second", "zoe")]


def test_the_chat_the_entry_and_the_place_are_made_together(world):
    later = NOON + timedelta(seconds=3)
    chat = world.get_chat(world.chat("ann", now=later))
    entry = world.session.get_one(QueueEntry, chat.queue_entry_id)

    assert (chat.state, chat.started_at, chat.last_activity_at, chat.last_sender) == ("active", later, later, None)
    assert (entry.state, entry.assigned_at) == ("assigned", later)
    assert (world.get_agent().current_chats, world.get_agent().last_chat_id) == (1, chat.id)


def test_the_lowest_load_relative_to_capacity_wins(world):
    world.agent("big", capacity=10)
    world.agent("small", capacity=2)
    world.waiting("a", "b", "c", "d", "e", "f")

    world.assign()

    # big, small (both empty, by id); then 1/10 < 1/2 until big holds 5 of 10, level with small's 1 of 2
    assert [agent for _, agent in world.pairs()] == ["big", "small", "big", "big", "big", "big"]


def test_equal_loads_in_different_terms_are_a_tie_for_the_rating(world):
    world.agent("three", capacity=3, rating="3")
    world.agent("six", capacity=6, rating="4")
    world.waiting("a", "b", "c")
    world.assign()
    assert (world.get_agent("three").current_chats, world.get_agent("six").current_chats) == (1, 2)

    world.waiting("d")
    world.assign()

    assert world.pairs()[-1] == ("d", "six")


def test_ties_go_to_the_higher_rating(world):
    world.agent("fair", rating="4.10")
    world.agent("best", rating="4.90")
    world.agent("good", rating="4.50")
    world.waiting("a", "b", "c")

    world.assign()

    assert [agent for _, agent in world.pairs()] == ["best", "good", "fair"]


def test_further_ties_go_to_the_agent_assigned_longest_ago_and_the_never_assigned_first(world):
    for agent in ("a", "b", "c"):
        world.agent(agent)
    world.waiting("1", "2")
    world.assign()
    world.ends(1)
    world.ends(2)

    world.waiting("3", "4", "5", since=NOON + timedelta(minutes=1))
    world.assign()

    assert [agent for _, agent in world.pairs()] == ["a", "b", "c", "a", "b"]


def test_within_one_batch_the_turn_goes_round(world):
    for agent in ("a", "b", "c"):
        world.agent(agent, capacity=3)
    world.waiting(*"123456789")

    world.assign()

    assert [agent for _, agent in world.pairs()] == ["a", "b", "c"] * 3


def test_offline_agents_and_agents_without_capacity_get_nobody(world):
    world.agent("away", online=False)
    world.agent("none", capacity=0)
    world.waiting("ann")

    assert world.assign() == 0
    assert world.states() == {"ann": "waiting"}


def test_an_agent_whose_capacity_is_all_taken_gets_nobody(world):
    world.chat("ann")
    world.waiting("bob")

    assert world.assign() == 0


def test_batches_of_ten_go_on_until_everyone_is_placed(world):
    world.agent("zoe", capacity=100)
    world.waiting(*(f"user-{number:02}" for number in range(25)))

    assert world.assign() == 25

    assert [progress["assigned"] for progress in world.checkpoints] == [10, 20, 25]
    assert [user for user, _ in world.pairs()] == [f"user-{number:02}" for number in range(25)]


def test_a_batch_reaches_beyond_the_ten_best_agents_only_when_it_must(world):
    for number in range(15):
        world.agent(f"agent-{number:02}")
    world.waiting(*(f"user-{number:02}" for number in range(20)))

    assert world.assign() == 15

    assert [agent for _, agent in world.pairs()] == [f"agent-{number:02}" for number in range(15)]


def test_running_twice_changes_nothing(world, check_invariants):
    world.agent("zoe", capacity=2)
    world.waiting("ann", "bob", "cat")
    world.assign()
    before = world.pairs()

    assert world.assign() == 0

    assert world.pairs() == before
    check_invariants()


def test_a_user_who_joined_after_the_runs_own_time_is_placed_all_the_same(world):
    later = NOON + timedelta(seconds=7)
    world.agent("zoe")
    world.waiting("ann", since=later)

    assert world.assign(now=NOON) == 1

    assert world.get_chat(1).started_at == later
    assert world.session.scalars(select(QueueEntry.assigned_at)).one() == later


def test_a_batch_that_rolls_back_leaves_its_users_first_in_line(world, engine, check_invariants):
    class LeaseLost(Exception):
        pass

    def lost(progress=None):
        raise LeaseLost

    world.agent("zoe", capacity=1)
    world.waiting("ann", "bob")
    with Session(engine) as other, pytest.raises(LeaseLost):
        assign_waiting_users(other, NOON, checkpoint=lost)
    assert world.pairs() == []

    assert world.assign() == 1

    assert world.pairs() == [("ann", "zoe")]
    check_invariants()


def test_a_trigger_is_not_lost_while_another_batch_is_at_work(world, engine):
    """The second run begins before the first has committed, and places the user whom the first run could not see."""
    world.agent("zoe", capacity=1)
    world.agent("yan", capacity=1)
    world.waiting("ann")
    with Session(engine) as first:
        assign_batch(first, NOON)
        world.waiting("bob", since=NOON + timedelta(seconds=1))

        def second(index):
            if index == 1:
                with Session(engine) as own:
                    return assign_waiting_users(own, NOON, checkpoint=lambda progress: own.commit())["assigned"]
            waits_for_the_turn(engine)
            first.commit()
            return 0

        assert sum(at_once(2, second)) == 1
    assert sorted(world.states().values()) == ["assigned", "assigned"]


def test_a_batch_looks_for_the_oldest_once_it_has_the_turn_and_not_before(world, engine):
    """A join that is committed while a batch waits is seen by the batch, although its time is earlier."""
    world.agent("zoe", capacity=11)
    world.waiting(*(f"user-{number:02}" for number in range(11)))
    with Session(engine) as first:
        assert assign_batch(first, NOON) == 10

        def act(index):
            if index == 1:
                with Session(engine) as own:
                    return assign_waiting_users(own, NOON, checkpoint=lambda progress: own.commit())["assigned"]
            waits_for_the_turn(engine)
            world.waiting("committed late", since=NOON + timedelta(seconds=5))
            first.commit()
            return 0

        at_once(2, act)
    assert world.pairs()[-1] == ("committed late", "zoe")
    assert world.states()["user-10"] == "waiting"


def test_a_user_about_to_leave_is_waited_for_and_not_overtaken_if_they_stay(world, engine):
    world.agent("zoe", capacity=1)
    world.waiting("ann", "bob")
    with Session(engine) as leaving:
        leave_queue(leaving, "ann", NOON)

        def act(index):
            if index == 1:
                return world.assign()
            waits_for_the_turn(engine)
            leaving.rollback()
            return 0

        at_once(2, act)
    assert world.pairs() == [("ann", "zoe")]


def test_a_user_who_left_meanwhile_is_passed_by(world, engine):
    world.agent("zoe", capacity=1)
    world.waiting("ann", "bob")
    with Session(engine) as leaving:
        leave_queue(leaving, "ann", NOON)

        def act(index):
            if index == 1:
                return world.assign()
            waits_for_the_turn(engine)
            leaving.commit()
            return 0

        at_once(2, act)
    assert world.pairs() == [("bob", "zoe")]


def test_an_agent_whose_row_somebody_holds_is_passed_over_and_the_users_keep_their_order(world, engine):
    world.agent("best", capacity=3, rating="5")
    world.agent("next", capacity=2, rating="1")
    world.waiting("ann", "bob", "cat")
    with Session(engine) as going:
        agent_offline(going, "best")

        assert world.assign() == 2

        assert world.pairs() == [("ann", "next"), ("bob", "next")]
        assert world.states()["cat"] == "waiting"


def test_when_all_agents_are_held_the_run_ends_and_the_next_one_goes_on(world, engine):
    world.agent("zoe")
    world.waiting("ann")
    with Session(engine) as holding:
        holding.execute(select(Agent).with_for_update()).all()
        assert world.assign() == 0

    assert world.assign() == 1


def test_users_after_one_whose_row_somebody_holds_wait_with_them(world, engine):
    world.agent("zoe", capacity=3)
    world.waiting("ann", "bob", "cat")
    with Session(engine) as leaving:
        leave_queue(leaving, "bob", NOON)

        with Session(engine) as own:
            assert assign_batch(own, NOON) == 1
            own.commit()

        assert world.pairs() == [("ann", "zoe")]
    assert world.assign() == 2


def test_a_batch_that_waits_too_long_fails_instead_of_filling_the_workers(world, engine, monkeypatch):
    monkeypatch.setattr(assignment, "PATIENCE", timedelta(milliseconds=20))
    world.agent("zoe", capacity=2)
    world.waiting("ann")
    with Session(engine) as stuck:
        assign_batch(stuck, NOON)
        with pytest.raises(OperationalError, match="lock timeout"):
            world.assign()
        stuck.rollback()
    world.session.rollback()

    assert world.assign() == 1


def test_the_patience_ends_with_the_batch(world):
    world.agent("zoe")
    world.waiting("ann")
    before = world.session.scalar(text("SHOW lock_timeout"))

    world.assign()

    assert world.session.scalar(text("SHOW lock_timeout")) == before


def test_the_database_refuses_a_second_active_chat_of_one_user(world):
    world.chat("ann")

    again = QueueEntry(user_id="ann", state="served", joined_at=NOON)
    world.session.add(again)
    world.session.flush()
    second = Chat(queue_entry_id=again.id, user_id="ann", agent_id="zoe", started_at=NOON, last_activity_at=NOON)
    world.session.add(second)
    with pytest.raises(IntegrityError, match="customer_service_chats_one_per_user"):
        world.session.flush()
    world.session.rollback()
    assert world.session.scalars(select(Chat.user_id)).all() == ["ann"]


def waits_for_the_turn(engine):
    """Wait until a session of this database waits for a lock of another session."""
    blocked = text("SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0")
    while True:
        with engine.connect() as connection:
            if connection.scalar(blocked):
                return
