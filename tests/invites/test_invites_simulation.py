"""The simulation's gateway and teams: people ask, accept, leave and move, and the jobs do the rest."""

import os
import random
import signal
import socket
import subprocess
import sys

import pytest
from invites_world import check
from sqlalchemy import select

from plugins.invites import simulation
from plugins.invites.models import Seat, Team, Waiting
from tests.support.eventually import eventually


@pytest.fixture
def address(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("ROTA_INVITES_GATEWAY", found)
    return found


def test_people_ask_accept_leave_and_move(address, database, world):
    dice = random.Random(20261128)
    with simulation.gateway(address, ":memory:") as control:
        assert simulation.has_teams(database, control)
        assert simulation.has_teams(database, control)
        for _ in range(15):
            simulation.step(world.session, control, dice)
            world.session.commit()
            world.sends()

    check(world.session)
    assert len(world.session.scalars(select(Waiting)).all()) > 3
    assert "invited" in world.session.scalars(select(Seat.state)).all()


def test_it_runs_until_it_is_told_to_stop_and_takes_its_gateway_with_it(address, shared_url, world):
    command = [sys.executable, "-m", "plugins.invites.simulation"]
    with subprocess.Popen(
        command, env={**os.environ, "DATABASE_URL": shared_url}, stderr=subprocess.PIPE, text=True
    ) as running:
        eventually(
            lambda: len(world.session.scalars(select(Team)).all()) == len(simulation.TEAMS) or world.session.rollback()
        )
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=60)

    assert (running.returncode, "stopped" in told) == (0, True), told


def test_without_a_database_or_a_gateway_it_says_so(address):
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    command = [sys.executable, "-m", "plugins.invites.simulation"]

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr.strip()) == (2, "DATABASE_URL is not set; the simulation needs a database")
