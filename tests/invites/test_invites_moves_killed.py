"""A move that is cut by kill -9 at any point: the person has a seat at every moment, and one seat at the end.

INVITES_EVERY=1 kills at every point; the size for CI is every 80th.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fleet import ROOT
from tests.support.simulated_gateway import gateway_process

EVERY = int(os.environ.get("INVITES_EVERY", "80"))
pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]


def test_a_person_who_is_moving_has_a_seat_at_every_moment(environment, postgres_url):
    program = Path(__file__).with_name("dying_movers.py")
    with gateway_process() as gateway:
        for team in ("red", "blue"):
            gateway.team(team, 1000)
        environ = {**os.environ, "ROTA_INVITES_GATEWAY": gateway.url}

        ran = subprocess.run(
            [sys.executable, str(program), str(EVERY)],
            env=environ,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=800,
        )
        sent = gateway.sent()

    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 50 / EVERY
    assert max(sent.values()) == 1, "a person was invited twice"
