"""Moves people, in processes that kill themselves at every point; ``python dying_movers.py EVERY`` with a gateway.

The first person's process dies at the first point, the second person's process at the point ``EVERY`` points later, and
so on, until a process has moved its person without reaching its point. After each death the person must have a seat,
here and at the gateway. Then another process finishes the move. The program prints the number of deaths.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx2
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from core import Run, enqueue
from plugins.invites import add_code, add_team, move_member, redeem
from plugins.invites.gateway.current import current_gateway
from plugins.invites.instants import at
from plugins.invites.models import Move, Request, Seat, SeatState, Team
from plugins.invites.processing import process
from plugins.invites.requests import OPEN


def main() -> None:
    """Let processes die, later and later."""
    deaths = 0
    for number in count():
        point = number * int(sys.argv[1])
        email = f"user-{number}@example.org"
        in_child(lambda email=email: prepare(email))
        died = os.WIFSIGNALED(in_child(lambda email=email, point=point: move(email, point)))
        require_a_seat(email)
        in_child(lambda email=email: move(email, None))
        require_the_end(email)
        if not died:
            break
        deaths += 1
    sys.stdout.write(f"{deaths}\n")


def in_child(work: Callable[[], None]) -> int:
    """Call ``work`` in a child. Return how it ended."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — a child must not return into the parent's code
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a child has failed")
    return status


def engine() -> Engine:
    return create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2"))


@dataclass
class Work:
    """The transaction of an attempt."""

    session: Session

    def checkpoint(self, progress: str | None) -> None:
        self.session.commit()

    def is_time_to_tell(self) -> bool:
        return False

    def enqueue(self, job: str, **options: Any) -> int:
        return enqueue(self.session, job, **options)


def prepare(email: str) -> None:
    """Give a person a seat of the team red, and have it confirmed."""
    with Session(engine()) as session:
        if session.scalar(select(Team.id)) is None:
            add_team(session, "red", pool="club", seats=100)
            add_team(session, "blue", pool="club", seats=0)
        redeem(session, add_code(session, "club"), email)
        session.commit()
        send_all(session)


def move(email: str, point: int | None) -> None:
    """Move a person to blue, or finish the move. With a point, die there."""
    own = engine()
    with Session(own) as session:
        now = at(session, None)
        session.rollback()
        if point is not None:
            die_at(point, own, session)
        if session.scalar(select(Move.id).join(Seat, Move.from_seat_id == Seat.id).where(Seat.email == email)) is None:
            session.execute(Team.__table__.update().where(Team.name == "blue").values(seats=Team.taken + 1))
            move_member(session, email, "red", "blue", now)
        session.commit()
        send_all(session)


def send_all(session: Session) -> None:
    """Send the open requests until there are none, with the function of the job."""
    while waiting := session.scalars(
        select(Request.id).where(Request.state.in_(OPEN)).order_by(Request.created_at)
    ).all():
        for request_id in waiting:
            now = at(session, None)
            session.commit()
            run = Run(0, "process-invite", str(request_id), None, 1, now, {}, Work(session))
            process(run, request_id, current_gateway())
            session.commit()


def die_at(point: int, own: Engine, session: Session) -> None:
    """Kill this process before or after a statement, a commit, or a request to the gateway."""
    left = iter(range(point, -1, -1))

    def step(*_: object) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("before_cursor_execute", "after_cursor_execute"):
        event.listen(own, name, step)
    for name in ("before_commit", "after_commit"):
        event.listen(session, name, step)
    send = httpx2.Client.send

    def sending(*args: Any, **options: Any) -> Any:
        step()
        answered = send(*args, **options)
        step()
        return answered

    httpx2.Client.send = sending


def seats(email: str) -> dict[str, str]:
    """Return the states of the seats that a person has here, by their teams."""
    with Session(engine()) as session:
        rows = select(Team.name, Seat.state).join(Seat, Seat.team_id == Team.id).where(Seat.email == email)
        return dict(session.execute(rows.where(Seat.state != SeatState.FREED)).all())


def at_gateway(email: str) -> list[str]:
    """Return the teams that have a person, by the gateway itself."""
    with httpx2.Client(base_url=os.environ["ROTA_INVITES_GATEWAY"], trust_env=False) as client:
        return [team for team in ("red", "blue") if client.get(f"/teams/{team}/members/{email}").status_code == 200]


def require_a_seat(email: str) -> None:
    """Fail unless a person has a seat that is not being removed, and is at the gateway."""
    assert {*seats(email).values()} - {SeatState.REMOVING}, seats(email)
    assert at_gateway(email), "the person is nowhere"


def require_the_end(email: str) -> None:
    """Fail unless a person has one seat, of the team blue, also at the gateway."""
    assert seats(email) == {"blue": SeatState.INVITED}, seats(email)
    assert at_gateway(email) == ["blue"]


if __name__ == "__main__":
    main()
