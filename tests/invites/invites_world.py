"""Makes teams and askers for the tests, records outcomes as the gateway would tell them, and checks what must hold."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import exists, func, select, text
from sqlalchemy.orm import Session

from plugins.invites import add_code, add_team, redeem
from plugins.invites.models import Move, Orphan, Request, Seat, SeatState, Team, Waiting
from plugins.invites.outcomes import begin, confirm, refuse

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@dataclass
class World:
    """Makes rows and changes with one call each. Every method commits."""

    session: Session

    def team(self, name: str = "red", seats: int = 1, pool: str = "club") -> int:
        team_id = add_team(self.session, name, pool=pool, seats=seats, now=NOON)
        self.session.commit()
        return team_id

    def code(self, uses: int = 1000, pool: str = "club", **options: Any) -> str:
        code = add_code(self.session, pool, uses=uses, now=NOON, **options)
        self.session.commit()
        return code

    def orphans(self, *names: str) -> None:
        """Add a team with members at the gateway that no record explains."""
        team_id = self.team()
        for name in names:
            self.session.add(Orphan(team_id=team_id, email=email(name), first_seen_at=NOON, last_seen_at=NOON))
            self.session.flush()
        self.session.commit()

    def redeems(self, code: str, *names: str, now: datetime = NOON) -> list[str]:
        """Let people redeem a code, one after another. Return the states of their answers."""
        states = []
        for name in names:
            states.append(redeem(self.session, code, email(name), now).state)
            self.session.commit()
        return states

    def checkpoint(self, progress: object = None) -> None:
        self.session.commit()

    def open_requests(self, kind: str | None = None) -> list[Any]:
        """Return the ids of the requests whose outcome is open, in the order of their seats."""
        self.session.rollback()
        rows = select(Request.id).where(Request.state.in_(["new", "sent", "unknown"]))
        rows = rows if kind is None else rows.where(Request.kind == kind)
        return [*self.session.scalars(rows.order_by(Request.seat_id))]

    def sends(self, kind: str | None = None, **outcome: Any) -> int:
        """Send the open requests, and record that the gateway has carried them out."""
        return sum(self.sends_one(request_id, **outcome) for request_id in self.open_requests(kind))

    def sends_one(self, request_id: Any, **outcome: Any) -> bool:
        """Send a request, and record that the gateway has carried it out. Return False if its outcome was known."""
        begin(self.session, request_id, NOON)
        self.session.commit()
        done = confirm(self.session, request_id, NOON, status=200, **outcome)
        self.session.commit()
        return done

    def refuses(self, kind: str | None = None) -> int:
        """Send the open requests, and record that the gateway has refused them."""
        found = self.open_requests(kind)
        for request_id in found:
            begin(self.session, request_id, NOON)
            refuse(self.session, request_id, NOON, status=422, problem="no")
            self.session.commit()
        return len(found)

    def states(self) -> dict[str, list[str]]:
        """Return the states of each person's seats, in the order in which they were given."""
        self.session.rollback()
        found: dict[str, list[str]] = {}
        for address, state in self.session.execute(select(Seat.email, Seat.state).order_by(Seat.id)):
            found.setdefault(address.partition("@")[0], []).append(state)
        return found

    def waiting(self) -> list[str]:
        """Return those who wait, in their order."""
        self.session.rollback()
        rows = select(Waiting.email).where(Waiting.state == "waiting").order_by(Waiting.priority.desc(), Waiting.id)
        return [address.partition("@")[0] for address in self.session.scalars(rows)]

    def taken(self) -> dict[str, int]:
        self.session.rollback()
        return dict(self.session.execute(select(Team.name, Team.taken).order_by(Team.name)).all())

    def seats(self) -> dict[str, int]:
        self.session.rollback()
        return dict(self.session.execute(select(Team.name, Team.seats)).all())

    def moves(self) -> list[str]:
        self.session.rollback()
        return [*self.session.scalars(select(Move.state).order_by(Move.id))]

    def runs(self, job: str) -> list[Any]:
        """Return the keys of the requested runs of a job."""
        self.session.rollback()
        return [*self.session.scalars(text("SELECT key FROM rota_runs WHERE job = :job ORDER BY id"), {"job": job})]


def email(name: str) -> str:
    return f"{name}@example.org"


def check(session: Session) -> None:
    """Assert what must hold after every commit: the counts are right, and nobody is given a seat twice."""
    session.rollback()
    live = func.count(Seat.id).filter(Seat.state != SeatState.FREED)
    counts = select(Team.name, Team.taken, Team.seats, live).outerjoin(Seat, Seat.team_id == Team.id).group_by(Team.id)
    for name, taken, seats, counted in session.execute(counts):
        assert taken == counted <= seats, f"team {name}: {taken=} {counted=} {seats=}"
    twice = (
        select(Seat.pool, Seat.email)
        .where(Seat.state != SeatState.FREED, ~Seat.is_target)
        .group_by(Seat.pool, Seat.email)
        .having(func.count() > 1)
    )
    assert session.execute(twice).all() == []
    is_moved_to = exists().where(Move.to_seat_id == Seat.id, Move.state.in_(["inviting", "removing"]))
    targets = select(Seat.id).where(Seat.state != SeatState.FREED, Seat.is_target, ~is_moved_to)
    assert session.scalars(targets).all() == [], "a seat is the target of no move"


def in_threads(number: int, work: Callable[[int], Any]) -> list[Any]:
    """Call ``work`` with 0, 1, 2, … in as many threads, which begin at the same moment. Return the results."""
    barrier = threading.Barrier(number)

    def begin_together(index: int) -> Any:
        barrier.wait(timeout=30)
        return work(index)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(begin_together, range(number)))


def placed_before_waiting(rows: Sequence[tuple[int, str]]) -> bool:
    """Return whether, in the order of the waiting list, nobody has a seat after somebody who waits."""
    states = [state for _, state in rows]
    return "placed" not in states[states.index("waiting") :] if "waiting" in states else True
