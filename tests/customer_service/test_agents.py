"""Agents go online, go offline, and change their capacity."""

from datetime import timedelta
from decimal import Decimal

import pytest
from customer_service_world import NOON

from plugins.customer_service import UnknownAgent, agent_offline, agent_online, register_agent, set_capacity

JOB = "process-customer-service-queue"


def test_a_new_agent_is_offline(world):
    world.agent("zoe", online=False)

    assert world.get_agent().is_online is False


def test_coming_online_triggers_an_assignment_in_the_same_session(world, outside):
    world.agent("zoe", online=False)
    outside.jobs.clear()

    assert agent_online(world.session, "zoe") is True

    assert outside.jobs == [(world.session, JOB)]


def test_coming_online_twice_triggers_once(world, outside):
    world.agent("zoe", online=True)
    outside.jobs.clear()

    assert agent_online(world.session, "zoe") is False

    assert outside.jobs == []


def test_going_offline_keeps_the_chats_and_gets_no_new_one(world):
    world.chat("ann")
    set_capacity(world.session, "zoe", 5)
    assert agent_offline(world.session, "zoe") is True
    assert agent_offline(world.session, "zoe") is False
    world.session.commit()

    world.waiting("bob")

    assert world.assign() == 0
    assert world.get_agent().current_chats == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda session: agent_online(session, "nobody"),
        lambda session: agent_offline(session, "nobody"),
        lambda session: set_capacity(session, "nobody", 1),
    ],
)
def test_an_unknown_agent_is_refused_by_name(session, act):
    with pytest.raises(UnknownAgent, match="unknown agent 'nobody'"):
        act(session)


def test_registering_again_changes_the_profile_and_keeps_the_chats(world):
    world.chat("ann")

    register_agent(world.session, "zoe", "Zoe B.", capacity=3)

    agent = world.get_agent()
    assert (agent.name, agent.capacity, agent.current_chats, agent.is_online) == ("Zoe B.", 3, 1, True)


def test_registering_again_without_a_rating_keeps_the_rating(world):
    world.agent("zoe", rating="4.50")

    register_agent(world.session, "zoe", "Zoe B.", capacity=3)
    assert world.get_agent().rating == Decimal("4.50")

    register_agent(world.session, "zoe", "Zoe B.", capacity=3, rating=Decimal(0))
    assert world.get_agent().rating == 0


def test_an_agent_registered_without_a_rating_has_0(world):
    register_agent(world.session, "new", "New", capacity=1)

    assert world.get_agent("new").rating == 0


def test_a_capacity_lowered_below_the_chats_is_kept_to_once_they_have_ended(world):
    world.agent("zoe", capacity=3)
    world.waiting("a", "b", "c")
    world.assign()
    set_capacity(world.session, "zoe", 2)
    world.waiting("d", since=NOON + timedelta(minutes=1))

    assert world.assign() == 0
    world.ends(1)
    assert world.assign() == 0
    world.ends(2)
    assert world.assign() == 1
    assert world.get_agent().current_chats == 2


def test_a_higher_capacity_triggers_an_assignment(world, outside):
    world.chat("ann")
    outside.jobs.clear()

    set_capacity(world.session, "zoe", 2)

    assert outside.jobs == [(world.session, JOB)]
