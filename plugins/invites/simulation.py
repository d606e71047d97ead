"""Makes sample data: a gateway with faults, teams, and people who ask for seats, accept, leave and move.

``python -m plugins.invites.simulation`` reads DATABASE_URL and ROTA_INVITES_GATEWAY, an address with a port of this
machine, and runs until SIGTERM or SIGINT. The gateway listens there. It keeps its members in the file that
INVITES_SIMULATED_MEMBERS names, or in memory. The names of the teams begin with ``simulated-``, and the program changes
no other teams.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx2
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from plugins.invites.codes import add_code, redeem
from plugins.invites.errors import InvitesError, TeamTaken
from plugins.invites.members import extend, remove_member
from plugins.invites.models import Seat, SeatState, Team
from plugins.invites.moves import move_member
from plugins.invites.teams import add_team

log = logging.getLogger("invites.simulation")

POOL = "simulated"
TEAMS = {"simulated-red": 12, "simulated-blue": 8, "simulated-green": 5}
STEP_SECONDS = 2.0
STEPS_TO_A_REPORT = 10
DAYS = 30
#: One request of the gateway in eight has one of these faults.
FAULTS = {
    "share": 0.125,
    "kinds": ["limited", "busy", "reset_after", "failed", "truncated"],
    "seed": 7,
    "seconds": None,
}

Control = Callable[[str, Any], Any]


def main() -> None:
    """Simulate until told to stop. Exits with status 2 if a variable is missing, or the port is taken."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s invites simulation: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    url = os.environ.get("DATABASE_URL") or usage("DATABASE_URL is not set; the simulation needs a database")
    address = os.environ.get("ROTA_INVITES_GATEWAY") or usage(
        "ROTA_INVITES_GATEWAY is not set; give an address such as http://127.0.0.1:9195"
    )
    stop = stop_on_signals()
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), hide_parameters=True, pool_size=1)
    with gateway(address, os.environ.get("INVITES_SIMULATED_MEMBERS", ":memory:")) as control:
        while not stop.is_set() and not has_teams(engine, control):
            stop.wait(STEP_SECONDS)
        log.info("started: %d teams, something happens every %g s; Ctrl-C ends it", len(TEAMS), STEP_SECONDS)
        simulate(engine, control, stop, random.Random())
    log.info("stopped")


def usage(problem: str) -> str:
    """End with status 2."""
    print(problem, file=sys.stderr)  # noqa: T201 — it is a command
    sys.exit(2)


def simulate(engine: Engine, control: Control, stop: Event, dice: random.Random) -> None:
    """Let something happen in each step."""
    steps = 0
    while not stop.is_set():
        try:
            with Session(engine) as session, session.begin():
                step(session, control, dice)
        except DBAPIError as error:
            log.warning("waiting for the database: %s", str(error.orig).strip().partition("\n")[0])
        steps += 1
        if steps % STEPS_TO_A_REPORT == 0:
            log.info("%d things have happened", steps)
        stop.wait(STEP_SECONDS)


def step(session: Session, control: Control, dice: random.Random) -> None:
    """Let a person ask for a seat, accept an invitation, leave, move to another team, or stay longer."""
    seated = (SeatState.INVITED, SeatState.MEMBER)
    rows = select(Team.name, Seat.email, Seat.state).join(Seat, Seat.team_id == Team.id)
    found = session.execute(rows.where(Team.pool == POOL, Seat.state.in_(seated)).order_by(Seat.id)).all()
    act = dice.choice(("ask", "ask", "accept", "accept", "leave", "move", "stay"))
    if act == "ask" or not found:
        code = add_code(session, POOL, days=DAYS)
        redeem(session, code, f"simulated-{dice.randrange(10**6)}@example.com")
        return
    team, email, state = dice.choice(found)
    if act == "accept" and state == SeatState.INVITED:
        control("accept", {"team": team, "email": email})
        return
    with_member(session, act, team, email, dice)


def with_member(session: Session, act: str, team: str, email: str, dice: random.Random) -> None:
    """Let a member leave, move or stay. It may be impossible at the moment."""
    try:
        with session.begin_nested():
            if act == "leave":
                remove_member(session, team, email)
            elif act == "move":
                move_member(session, email, team, dice.choice([*TEAMS]))
            elif act == "stay":
                extend(session, team, email, timedelta(days=1))
    except InvitesError as error:
        log.info("not possible: %s", error)


@contextmanager
def gateway(address: str, path: str) -> Iterator[Control]:
    """Start the simulated gateway at ``address``. Yield a function that orders something from it."""
    port = urlsplit(address).port
    command = [sys.executable, "-m", "plugins.invites.gateway.simulated", "--port", str(port), "--path", path]
    token = os.environ.get("ROTA_INVITES_GATEWAY_TOKEN")
    with subprocess.Popen(
        [*command, *(["--token", token] if token else [])], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        try:
            assert running.stdout is not None
            if not running.stdout.readline():
                usage(f"the simulated gateway cannot listen at {address}; is another one running?")
            with httpx2.Client(base_url=address, timeout=30, trust_env=False) as client:
                yield lambda action, body: client.post(f"/_control/{action}", content=json.dumps(body))
        finally:
            running.terminate()


def has_teams(engine: Engine, control: Control) -> bool:
    """Add the teams here and at the gateway. Return False if the database cannot be used yet."""
    try:
        with Session(engine) as session:
            for name, seats in TEAMS.items():
                control("team", {"team": name, "seats": seats})
                add(session, name, seats)
    except DBAPIError as error:
        log.warning("waiting for the database: %s", str(error.orig).strip().partition("\n")[0])
        return False
    control("chance", FAULTS)
    return True


def add(session: Session, name: str, seats: int) -> None:
    """Add a team, unless it is there."""
    with session.begin():
        try:
            add_team(session, name, pool=POOL, seats=seats)
        except TeamTaken:
            log.info("team %s is there already", name)


def stop_on_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    main()
