"""The routes of this plugin. They call the functions that applications call. Addresses are in bodies, not in paths."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from plugins.invites import asking, batches, members, moves, orphans, overview, teams

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Email = Annotated[str, Field(max_length=1000)]
Limit = Annotated[int, Field(ge=1, le=1000)]
Id = Annotated[int, Field(ge=1, lt=2**63)]
After = Annotated[int, Field(ge=0, lt=2**63)]
#: A call may take ten seconds, so longer lists are for `rota invites import`.
MOST_LINES = 10_000
#: Who has decided about an orphan.
BY = "HTTP"


class ShownTeam(BaseModel):
    """A team with the number of its seats, and of those that are taken."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    pool: str
    seats: int
    taken: int
    state: str
    closed_until: datetime | None


class ShownSeat(BaseModel):
    """A seat that is taken, and the person who has it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    state: str
    expires_at: datetime | None


class ShownWaiting(BaseModel):
    """A person who waits."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    pool: str
    email: str
    priority: int
    asked_at: datetime


class ShownRequest(BaseModel):
    """A request to the gateway whose outcome is unknown."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: str
    team: str
    seat_id: int
    state: str
    attempts: int
    last_status: int | None
    changed_at: datetime


class ShownOrphan(BaseModel):
    """A member at the gateway that no record explains."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    team_id: int
    email: str
    state: str
    sightings: int
    first_seen_at: datetime
    last_seen_at: datetime
    decided_by: str | None


class Body(BaseModel):
    """The base of bodies: a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class NewSeats(Body):
    """The number of seats that a team shall have."""

    seats: Annotated[int, Field(ge=0, le=teams.MOST_SEATS, strict=True)]


class Person(Body):
    """A person, by the address."""

    email: Email


class Destination(Body):
    """A person, and the team into which the person moves."""

    email: Email
    to_team: Name


class Listed(Body):
    """A list of people, with an address in each element."""

    pool: Name
    emails: Annotated[list[Email], Field(max_length=MOST_LINES)]
    days: Annotated[int, Field(ge=1, le=36_500)] | None = None


class ShownReport(BaseModel):
    """What becomes of a list. ``problems`` has the reasons by the numbers of the lines."""

    lines: int
    seats: int
    waiting: int
    problems: dict[int, str]
    batch_id: int | None


class Begun(BaseModel):
    """Whether a removal has begun. It is false if one was under way."""

    begun: bool


class Kept(BaseModel):
    """Whether a decision is new. It is false if it was made before."""

    changed: bool


class Requested(BaseModel):
    """The run that does what was requested."""

    run: int


class Cancelled(BaseModel):
    """Whether a move was cancelled. It is false if the person is not moving."""

    cancelled: bool


class ShownMove(BaseModel):
    """A move that has begun."""

    move: int


def list_teams(session: Session) -> list[ShownTeam]:
    """Return the teams, by pool and name."""
    return [ShownTeam.model_validate(each) for each in teams.list_teams(session)]


def list_seats(session: Session, name: Name, after: After = 0, limit: Limit = 100) -> list[ShownSeat]:
    """Return the seats of a team that are taken, beginning after the seat ``after``."""
    found = teams.list_seats(session, teams.find_team(session, name), after=after, limit=limit)
    return [ShownSeat.model_validate(each) for each in found]


def set_seats(session: Session, name: Name, new: NewSeats) -> ShownTeam:
    """Give a team another number of seats, which is not lower than those that are taken."""
    teams.set_seats(session, name, new.seats)
    session.expire_all()
    return ShownTeam.model_validate(teams.find_team(session, name))


def remove(session: Session, name: Name, person: Person) -> Begun:
    """Remove a person from a team."""
    return Begun(begun=members.remove_member(session, name, person.email))


def move(session: Session, name: Name, destination: Destination) -> ShownMove:
    """Move a person from a team to another one."""
    return ShownMove(move=moves.move_member(session, destination.email, name, destination.to_team))


def cancel_move(session: Session, name: Name, person: Person) -> Cancelled:
    """End a person's move from a team before the invitation is sent."""
    return Cancelled(cancelled=moves.cancel_move(session, person.email, name))


def list_waiting(session: Session, pool: Name | None = None, limit: Limit = 100) -> list[ShownWaiting]:
    """Return the people who wait, in the order in which they get seats."""
    return [ShownWaiting.model_validate(each) for each in asking.list_waiting(session, pool, limit)]


def list_unknown(session: Session, limit: Limit = 100) -> list[ShownRequest]:
    """Return the requests to the gateway whose outcome is unknown, the oldest first."""
    return [ShownRequest.model_validate(each) for each in overview.unknown_requests(session, limit)]


def list_orphans(session: Session) -> list[ShownOrphan]:
    """Return the members at the gateway that no record explains, the oldest first."""
    return [ShownOrphan.model_validate(each) for each in orphans.list_orphans(session)]


def keep_orphan(session: Session, orphan: Id) -> Kept:
    """Decide that a member at the gateway stays although no record explains it."""
    return Kept(changed=orphans.keep_orphan(session, orphan, BY))


def remove_orphan(session: Session, orphan: Id) -> Requested:
    """Remove a member from the gateway that no record explains."""
    return Requested(run=orphans.remove_orphan(session, orphan, BY))


def preview(session: Session, listed: Listed) -> ShownReport:
    """Return what an import of the list would do, and change nothing."""
    return ShownReport(**asdict(batches.preview(session, listed.emails, listed.pool, days=listed.days)))


def import_list(session: Session, listed: Listed) -> ShownReport:
    """Invite the people of a list."""
    return ShownReport(**asdict(batches.invite_many(session, listed.emails, listed.pool, days=listed.days)))
