"""The sample data is plausible and clearly named, and the program waits for an absent database."""

import random
from collections import Counter
from datetime import timedelta
from threading import Event

import pytest
from customer_service_world import NOON
from sqlalchemy import create_engine, select

from plugins.customer_service import simulation
from plugins.customer_service.models import Agent, Chat, QueueEntry


def test_after_a_while_users_join_and_chat_and_everyone_is_clearly_named(world, engine, check_invariants):
    dice, done = random.Random(1), Counter()
    for second in range(60):
        now = NOON + timedelta(seconds=second)
        done += simulation.step(engine, now, dice)
        world.assign(now)

    assert done["users joined"] == 60
    assert done["agents hired"] == simulation.AGENTS
    assert done["messages"] > 60
    assert done["chats ended"] > 0
    for name in (Agent.id, QueueEntry.user_id, Chat.user_id):
        assert all(found.startswith("simulated-") for found in world.session.scalars(select(name)))
    check_invariants()


def test_some_users_go_quiet_once_the_agent_has_spoken():
    quiet = [simulation._is_quiet(f"simulated-user-{number:010x}") for number in range(100)]

    assert sum(quiet) == 20


def test_real_users_and_agents_are_left_alone(world, engine):
    chat_id = world.chat("ann", "zoe")
    dice = random.Random(2)
    for second in range(40):
        simulation.step(engine, NOON + timedelta(seconds=second), dice)

    chat = world.get_chat(chat_id)
    assert (chat.state, chat.last_sender) == ("active", None)
    assert world.get_agent("zoe").is_online


def test_an_absent_database_is_waited_for_and_its_password_not_told(caplog):
    nowhere = create_engine("postgresql+psycopg2://rota:secret@127.0.0.1:1/rota")

    assert simulation._attempt(nowhere, random.Random()) is None

    assert "waiting for the database" in caplog.text
    assert "secret" not in caplog.text


def test_a_database_without_the_tables_is_waited_for(engine, caplog):
    elsewhere = engine.execution_options(schema_translate_map={None: "nowhere"})

    assert simulation._attempt(elsewhere, random.Random()) is None

    assert "does not exist" in caplog.text


def test_it_stops_when_told(engine):
    stop = Event()
    stop.set()

    simulation._simulate(engine, stop, random.Random())


def test_without_a_database_url_it_says_so(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)

    with pytest.raises(SystemExit, match="DATABASE_URL is not set"):
        simulation.main()
