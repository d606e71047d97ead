"""Compares a team with its members at the gateway, and corrects what is wrong here. The gateway has the truth.

- A request that has been open for ten minutes is sent again. This needs no list, and a person who is found is settled.
- An invited person who has accepted is a member.
- An invitation that was not accepted within seven days has ended, and the person is removed.
- A person whom the gateway does not have has lost the seat. The list alone does not decide this: the gateway is asked
  for each such person again. If the gateway lacks more than five people and more than a tenth of a team, nobody loses a
  seat.

No transaction is open while the gateway is asked. The rows are read before the list is, and a row that has changed in
the last ten minutes is left alone, since a run may be at work on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from core import Later, Run
from plugins.invites import outcomes
from plugins.invites.gateway import Gateway, Member, ReadFailed
from plugins.invites.models import Request, RequestKind, Seat, SeatState, Team
from plugins.invites.processing import RECONCILE
from plugins.invites.removal import start_removal
from plugins.invites.requests import OPEN, PROCESS
from plugins.invites.seats import lock_seat

T = TypeVar("T")
#: If a row has not changed for this long, no run is working on it, and the row is older than the list.
SETTLED_AFTER = timedelta(minutes=10)
#: An invitation must be accepted within this time.
INVITED_FOR = timedelta(days=7)
#: At most this many people of a team lose their seats in one run, or this share of the team if that is more.
MOST_LOST, SHARE_LOST = 5, 0.1
#: The team is locked until this many changes are committed.
BATCH = 100


class Open(NamedTuple):
    """A request whose outcome is open."""

    request_id: UUID
    kind: str
    email: str
    priority: int


class Taken(NamedTuple):
    """A seat that has a person."""

    seat_id: int
    email: str
    state: str


def request_all(run: Run) -> dict[str, int]:
    """Request the comparison of each team, unless a comparison of the team is waiting already. Return how many teams
    there are.
    """
    team_ids = run.session.scalars(select(Team.id).order_by(Team.id)).all()
    for team_id in team_ids:
        run.enqueue(RECONCILE, key=str(team_id), args={"team_id": team_id}, unless="waiting")
    return {"teams": len(team_ids)}


def reconcile(run: Run, team_id: int, gateway: Gateway) -> dict[str, Any]:
    """Compare one team, and count the corrections. If no complete listing can be had, requests are only sent again.

    Raises ReadFailed, and Later if the gateway wants to be asked later.
    """
    gateway_ref = run.session.scalar(select(Team.gateway_ref).where(Team.id == team_id))
    if gateway_ref is None:
        return {"skipped": "unknown team"}
    is_settled = (Seat.team_id == team_id) & (Seat.changed_at <= run.now - SETTLED_AFTER)
    requests = open_requests(run.session, (Seat.team_id == team_id) & (Request.changed_at <= run.now - SETTLED_AFTER))
    seats = taken_seats(run.session, is_settled)
    counts = {"sent_again": len(requests)} if requests else {}
    for request in requests:
        send_again(run, team_id, request)
    run.checkpoint(counts)
    members = read(lambda: gateway.members(gateway_ref))
    find = lambda email: read(lambda: gateway.find(gateway_ref, email))  # noqa: E731
    return Comparison(run, team_id, members, find, counts).correct([], seats)


def reconcile_seat(run: Run, team_id: int, seat_id: int, gateway: Gateway) -> dict[str, Any]:
    """Compare one seat, after a hint that it has changed at the gateway. Raises as ``reconcile`` does."""
    found = run.session.execute(
        select(Team.gateway_ref, Seat.email).join(Seat, Seat.team_id == Team.id).where(Seat.id == seat_id)
    ).one_or_none()
    if found is None:
        return {"skipped": "unknown seat"}
    requests = open_requests(run.session, Seat.id == seat_id)
    seats = taken_seats(run.session, Seat.id == seat_id)
    run.checkpoint()
    member = read(lambda: gateway.find(found.gateway_ref, found.email))
    members = {} if member is None else {found.email: member}
    return Comparison(run, team_id, members, lambda _: member).correct(requests, seats)


def open_requests(session: Session, chosen: ColumnElement[bool]) -> Sequence[Open]:
    """Return the requests whose outcome is open."""
    rows = select(Request.id, Request.kind, Seat.email, Seat.priority).join(Seat, Seat.id == Request.seat_id)
    return [Open(*row) for row in session.execute(rows.where(Request.state.in_(OPEN), chosen).order_by(Request.id))]


def taken_seats(session: Session, chosen: ColumnElement[bool]) -> Sequence[Taken]:
    """Return the seats whose persons the gateway should have, and those that are being removed by no request."""
    states = (SeatState.INVITED, SeatState.MEMBER, SeatState.REMOVING)
    rows = select(Seat.id, Seat.email, Seat.state).where(Seat.state.in_(states), ~has_request(Seat.id), chosen)
    return [Taken(*row) for row in session.execute(rows.order_by(Seat.id))]


def send_again(run: Run, team_id: int, request: Open) -> None:
    """Request a run that sends a request, or settles it, unless one is waiting."""
    key, args = str(request.request_id), {"request_id": str(request.request_id), "team_id": team_id}
    run.enqueue(PROCESS, key=key, args=args, priority=request.priority, unless="waiting")


def has_request(seat_id: Any) -> ColumnElement[bool]:
    """Return whether a request of a seat is open."""
    return exists().where(Request.seat_id == seat_id, Request.state.in_(OPEN))


def read(ask: Callable[[], T]) -> T:
    """Return what the gateway has. Raises Later instead of ReadFailed if the gateway names a time to wait."""
    try:
        return ask()
    except ReadFailed as error:
        if error.wait is None:
            raise
        raise Later(in_=error.wait, reason=str(error)) from None


@dataclass(slots=True)
class Comparison:
    """The comparison of a team, or of one of its seats, with the members that the gateway has.

    The rows were read before the members. So a row that is still the same is not newer than the members.
    """

    run: Run
    team_id: int
    members: Mapping[str, Member]
    find: Callable[[str], Member | None]
    counts: dict[str, int] = field(default_factory=dict)

    def correct(self, requests: Sequence[Open], seats: Sequence[Taken]) -> dict[str, int]:
        """Correct what is wrong here. Return the counts."""
        self._each(requests, self._settle)
        self._each([seat for seat in seats if self._has_accepted(seat)], self._join)
        self._each(
            [seat for seat in seats if seat.state == SeatState.INVITED and self._has(seat)], self._end_invitation
        )
        self._lose([seat for seat in seats if not self._has(seat)], len(seats))
        return self.counts

    def _has(self, seat: Taken) -> bool:
        return seat.email in self.members

    def _has_accepted(self, seat: Taken) -> bool:
        return seat.state == SeatState.INVITED and self._has(seat) and self.members[seat.email].has_accepted

    def _each(self, items: Sequence[T], act: Callable[[T], str | None]) -> None:
        """Call ``act`` for each item, count what it returns, and commit them batch by batch."""
        for first in range(0, len(items), BATCH):
            for done in map(act, items[first : first + BATCH]):
                if done is not None:
                    self.counts[done] = self.counts.get(done, 0) + 1
            self.run.checkpoint(self.counts)

    def _settle(self, request: Open) -> str:
        """Settle a request by the list, or send it again."""
        member = self.members.get(request.email)
        if (request.kind == RequestKind.INVITE) == (member is not None):
            has_accepted = member is not None and member.has_accepted
            outcomes.confirm(self.run.session, request.request_id, self.run.now, is_member=has_accepted)
            return "settled"
        send_again(self.run, self.team_id, request)
        return "sent_again"

    def _join(self, seat: Taken) -> str | None:
        return "joined" if outcomes.member_joined(self.run.session, seat.seat_id, self.run.now) else None

    def _end_invitation(self, taken: Taken) -> str | None:
        """Remove a person who was invited long ago and has not accepted."""
        seat, move = lock_seat(self.run.session, taken.seat_id)
        is_over = seat.state == SeatState.INVITED and seat.changed_at <= self.run.now - INVITED_FOR
        if not is_over or move is not None:
            return None
        start_removal(self.run.session, seat, self.run.now)
        return "ended"

    def _lose(self, missing: Sequence[Taken], seats: int) -> None:
        """Free the seats of people whom the gateway does not have, unless there are too many of them."""
        gone = [seat for seat in missing if seat.state != SeatState.REMOVING]
        if len(gone) > max(MOST_LOST, SHARE_LOST * seats):
            self.run.log.error("members.missing", team=self.team_id, missing=len(gone), seats=seats)
            self.counts["missing"] = len(gone)
            missing = [seat for seat in missing if seat.state == SeatState.REMOVING]
        for seat in missing:
            if self.find(seat.email) is None:
                self._each([seat], self._free)

    def _free(self, taken: Taken) -> str | None:
        """Free a seat that has not changed since it was read."""
        seat, _ = lock_seat(self.run.session, taken.seat_id)
        if seat.state != taken.state or self.run.session.scalar(select(has_request(seat.id))):
            return None
        outcomes.lose(self.run.session, seat.id, self.run.now)
        return "lost"
