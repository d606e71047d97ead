"""Teams and the number of their seats. They are changed in the application's own transaction."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from plugins.invites.errors import BadValue, SeatsTaken, TeamTaken, UnknownTeam
from plugins.invites.giving import give_seats
from plugins.invites.instants import at
from plugins.invites.models import Seat, SeatState, Team, TeamState
from plugins.invites.pools import take_turn

LONGEST_NAME = 100
MOST_SEATS = 1_000_000


def add_team(
    session: Session,
    name: str,
    *,
    pool: str,
    seats: int,
    gateway_ref: str | None = None,
    now: datetime | None = None,
) -> int:
    """Add a team with ``seats`` seats, which go to those who wait for a seat of ``pool``. Return the team's id.

    ``gateway_ref`` is the team's name at the gateway, by default ``name``. Raises BadValue or TeamTaken.
    """
    check_names(name=name, pool=pool, gateway_ref=gateway_ref or name)
    check_seats(seats)
    take_turn(session, pool)
    team = _insert(session, {"name": name, "pool": pool, "seats": seats, "gateway_ref": gateway_ref or name})
    give_seats(session, pool, at(session, now))
    return team.id


def set_seats(session: Session, name: str, seats: int, now: datetime | None = None) -> int:
    """Give a team another number of seats. More seats go to those who wait. Return the former number.

    Raises SeatsTaken if more seats than that are taken; then nothing changes. Raises UnknownTeam or BadValue.
    """
    check_seats(seats)
    team = lock_team(session, name)
    before = team.seats
    if seats < team.taken:
        raise SeatsTaken(name, team.taken, seats)
    team.seats = seats
    session.flush()
    if seats > before:
        give_seats(session, team.pool, at(session, now))
    return before


def close_team(session: Session, name: str) -> bool:
    """Give no more seats of a team. Its members stay. Return False if it is closed. Raises UnknownTeam."""
    return _set_state(session, name, TeamState.CLOSED)


def open_team(session: Session, name: str, now: datetime | None = None) -> bool:
    """Give seats of a closed team again. Return False if it is open. Raises UnknownTeam."""
    changed = _set_state(session, name, TeamState.OPEN)
    if changed:
        give_seats(session, find_team(session, name).pool, at(session, now))
    return changed


def find_team(session: Session, name: str) -> Team:
    """Return the team ``name``. Raises UnknownTeam."""
    team = session.scalars(select(Team).where(Team.name == name)).one_or_none()
    if team is None:
        raise UnknownTeam(name)
    return team


def list_teams(session: Session) -> Sequence[Team]:
    """Return all teams, by pool and name."""
    return session.scalars(select(Team).order_by(Team.pool, Team.name)).all()


def list_seats(session: Session, team: Team, *, after: int = 0, limit: int = 1000) -> Sequence[Seat]:
    """Return the seats of a team that are taken, the oldest first, beginning after the seat ``after``."""
    taken = select(Seat).where(Seat.team_id == team.id, Seat.state != SeatState.FREED, Seat.id > after)
    return session.scalars(taken.order_by(Seat.id).limit(limit)).all()


def lock_team(session: Session, name: str) -> Team:
    """Take the turn of a team's pool, and return the team, which nobody else changes. Raises UnknownTeam."""
    team = find_team(session, name)
    take_turn(session, team.pool)
    return lock_teams(session, [team.id])[0]


def lock_teams(session: Session, team_ids: Sequence[int]) -> Sequence[Team]:
    """Lock teams, in the order of their ids, until the transaction ends. Return them as they are now."""
    rows = select(Team).where(Team.id.in_(team_ids)).order_by(Team.id).with_for_update()
    return session.scalars(rows, execution_options={"populate_existing": True}).all()


def check_names(**names: str) -> None:
    """Raise BadValue for the first text that is no name: 1 to 100 printable characters, with no spaces around it."""
    for what, name in names.items():
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()):
            raise BadValue(what, name, f"1 to {LONGEST_NAME} printable characters, with no spaces around them")


def check_seats(seats: int) -> None:
    """Raise BadValue unless ``seats`` is 0 to 1,000,000."""
    if isinstance(seats, bool) or not isinstance(seats, int) or not 0 <= seats <= MOST_SEATS:
        raise BadValue("seats", seats, f"0 to {MOST_SEATS:,}")


def _set_state(session: Session, name: str, state: TeamState) -> bool:
    team = lock_team(session, name)
    changed = team.state != state
    team.state = state
    session.flush()
    return changed


def _insert(session: Session, columns: dict[str, Any]) -> Team:
    with suppress(IntegrityError), session.begin_nested():
        return session.scalars(insert(Team).values(columns).returning(Team)).one()
    raise TeamTaken(columns["name"])
