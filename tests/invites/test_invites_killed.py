"""Workers killed with -9 while they invite people through a gateway with every fault: each person is invited once.

INVITES_PEOPLE=5000 INVITES_KILLS=20 takes about ten minutes, and INVITES_SEED chooses other faults and other moments.
"""

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import enqueue
from plugins.invites import add_team, invite_many
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet
from tests.support.simulated_gateway import GatewayProcess, gateway_process

PEOPLE = int(os.environ.get("INVITES_PEOPLE", "40"))
KILLS = int(os.environ.get("INVITES_KILLS", "1"))
SEED = int(os.environ.get("INVITES_SEED", "20261128"))
pytestmark = [pytest.mark.crash, pytest.mark.timeout(300 + 30 * KILLS + PEOPLE)]

TEAMS = 4
#: The share of the requests that have a fault, and the faults.
SHARE = 0.4
FAULTS = (
    "hang_before", "hang_after", "reset_before", "reset_after", "limited", "limited_date", "busy", "failed",
    "failed_after", "truncated", "unreadable", "huge", "forget", "omit_page",
)  # fmt: skip
#: In seconds. The gateway hangs for longer than a worker waits.
HANGS, WAITS = 0.8, 0.4
PATIENCE = 240.0 + PEOPLE / 2
#: A worker is killed while it is at work on so many requests.
SEVERAL = 3

#: Retries that are due in some minutes are due now. Rows that runs have locked are left alone, so there is no deadlock.
HURRY = """
    UPDATE rota_runs SET due_at = clock_timestamp() WHERE id IN (
        SELECT id FROM rota_runs WHERE state = 'retrying' AND job LIKE '%-invite%' FOR UPDATE SKIP LOCKED)
"""
#: Requests that no run will send have been open for an hour. The teams of the other requests are not returned.
AN_HOUR_LATER = """
    WITH left_open AS (
        SELECT id FROM invites_requests AS request
        WHERE state IN ('new', 'sent', 'unknown') AND NOT EXISTS (
            SELECT 1 FROM rota_runs WHERE job = 'process-invite' AND key = CAST(request.id AS text)
            AND state IN ('queued', 'retrying', 'running'))
        FOR UPDATE SKIP LOCKED
    ), aged AS (
        UPDATE invites_requests AS request SET changed_at = changed_at - interval '1 hour'
        FROM left_open WHERE request.id = left_open.id RETURNING seat_id)
    SELECT DISTINCT team_id FROM invites_seats JOIN aged ON aged.seat_id = invites_seats.id
"""


def test_each_person_is_invited_once_whatever_dies(tmp_path, postgres_url, redis_url):
    dice = random.Random(SEED)
    with inviting(tmp_path, postgres_url, redis_url) as (gateway, service):
        gateway.chance(SHARE, *FAULTS, seed=SEED, seconds=HANGS)
        for round_ in range(KILLS):
            asked = invite(service, round_)
            kill_in_the_middle(service, dice.randrange(1, asked // 2))
        service.worker(threads=16)
        eventually(lambda: is_settled(service), within=PATIENCE, every=0.5)

        requests = Counter(row.state for row in service.rows("SELECT state FROM invites_requests"))
        seats = Counter(row.state for row in service.rows("SELECT state FROM invites_seats"))
        sent = gateway.sent()
        assert requests == {"confirmed": PEOPLE}
        assert seats == {"invited": PEOPLE}
        assert (len(sent), {*sent.values()}) == (PEOPLE, {1})
        runs = service.runs("process-invite")
        assert sum(run.crashes for run in runs) > 0, "none was killed in the middle of a request"
        told = {name: sum(getattr(run, name) or 0 for run in runs) for name in ("crashes", "failures", "laters")}
        dead = sum(run.state == "dead" for run in runs)
        print(f"seed {SEED}: {PEOPLE} people, {KILLS} kills, {told}, {dead} dead runs")  # noqa: T201


@contextmanager
def inviting(folder: Path, postgres_url: str, redis_url: str) -> Iterator[tuple[GatewayProcess, Fleet]]:
    """Yield a gateway, and a service with teams that have a seat for each person.

    If the gateway has forgotten an id, it sends a person who is invited already another e-mail.
    """
    with gateway_process("--resends") as gateway:
        environ = {
            "ROTA_INVITES_GATEWAY": gateway.url,
            "ROTA_INVITES_GATEWAY_READ_SECONDS": str(WAITS),
            "ROTA_INVITES_GATEWAY_REQUESTS": "16",
            "ROTA_INVITES_TEAM_REQUESTS": "8",
            "ROTA_DISPATCH_SECONDS": "0.2",
            # After two processes have died during a run, the run gets a process of its own. Here many runs have such
            # deaths, and the kills must find many runs at work.
            "ROTA_MAX_CRASHES": "100",
        }
        with fleet(folder, postgres_url, redis_url, jobs="none", environ=environ) as service:
            add_teams(service, gateway)
            yield gateway, service


def add_teams(service: Fleet, gateway: GatewayProcess) -> None:
    """Add the teams here and at the gateway."""
    with Session(service.engine) as session, session.begin():
        for number in range(TEAMS):
            gateway.team(f"team{number}", PEOPLE)
            add_team(session, f"team{number}", pool="club", seats=-(-PEOPLE // TEAMS))


def invite(service: Fleet, round_: int) -> int:
    """Invite the people of a round. Return how many they are."""
    people = [f"p{number}@example.org" for number in range(PEOPLE) if number % KILLS == round_]
    with Session(service.engine) as session, session.begin():
        invite_many(session, people, "club")
    return len(people)


def kill_in_the_middle(service: Fleet, enough: int) -> None:
    """Kill a worker after it has settled ``enough`` more requests, while it is at work on others."""
    enough += settled(service)
    worker = service.worker(threads=16)
    eventually(lambda: settled(service) >= enough, within=PATIENCE, every=0.01)
    eventually(lambda: killed_at_work(service, worker), within=PATIENCE, every=0.01)


def killed_at_work(service: Fleet, worker: subprocess.Popen[bytes]) -> bool:
    """Kill a worker if it is at work on several requests. Otherwise, let retries be due, and return False."""
    service.pause(worker)
    if at_work(service) >= SEVERAL:
        service.kill(worker)
        return True
    service.wake(worker)
    hurry(service)
    return False


def settled(service: Fleet) -> int:
    return int(service.rows("SELECT count(*) FROM invites_requests WHERE state = 'confirmed'")[0][0])


def at_work(service: Fleet) -> int:
    running = "SELECT count(*) FROM rota_runs WHERE job = 'process-invite' AND state = 'running'"
    return int(service.rows(running)[0][0])


def hurry(service: Fleet) -> None:
    with service.engine.begin() as connection:
        connection.execute(text(HURRY))


def is_settled(service: Fleet) -> bool:
    """Let an hour pass, and have teams compared that have requests which no run will send. Return whether all ended."""
    if not service.rows("SELECT 1 FROM invites_requests WHERE state IN ('new', 'sent', 'unknown') LIMIT 1"):
        return True
    hurry(service)
    with Session(service.engine) as session, session.begin():
        team_ids = session.scalars(text(AN_HOUR_LATER)).all()
    with Session(service.engine) as session, session.begin():
        for team_id in team_ids:
            compare(session, team_id)
    return False


def compare(session: Session, team_id: int) -> Any:
    args = {"team_id": team_id}
    return enqueue(session, "reconcile-invites", key=str(team_id), args=args, unless="waiting")
