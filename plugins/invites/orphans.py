"""Finds members of the gateway that no row explains, and removes them if that is switched on.

A member is explained by a seat of the team that is not freed, or was freed within the last hour. An *orphan* is a
member who was unexplained in two complete listings, at least half an hour apart. A listing that is not complete counts
for nothing. Orphans are only reported, unless ROTA_INVITES_REMOVE_ORPHANS is set, or a person has decided about one.
One run removes at most five of a team, or a tenth of its members if that is more.

The orphans that a person has decided to remove are the first of these, whatever the settings are. If the gateway does
not confirm a removal, the run is tried again, with the same request id.

Before a removal, the gateway is asked for the person again. If a seat was given to the person in the meantime, the
person is not removed; if that happens during the removal, the person is invited again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import NotFound, Run, enqueue
from plugins.invites.errors import InvitesError
from plugins.invites.gateway import Done, Gateway, Limited, Member, NoSeats, NotSent, Outcome, Refused, Unknown
from plugins.invites.gateway.errors import OutcomeUnknown, RequestNotSent
from plugins.invites.models import Orphan, OrphanState, RequestKind, Seat, SeatState, Team
from plugins.invites.processing import close_team
from plugins.invites.reconciliation import read
from plugins.invites.requests import add_requests
from plugins.invites.seats import lock_seat, set_state
from plugins.invites.settings import InvitesSettings

DETECT = "detect-orphan-users"
#: A seat that was freed within this time explains a member: the listing may be older.
EXPLAINED_FOR = timedelta(hours=1)
#: The second sighting counts only after this time.
APART = timedelta(minutes=30)
#: At most this many orphans of a team are removed in one run, or this share of its members if that is more.
MOST_REMOVED, SHARE_REMOVED = 5, 0.1
#: At most this many rows are in one statement.
BATCH = 1000
BY_SETTING = "ROTA_INVITES_REMOVE_ORPHANS"
BY_GATEWAY = "gateway"


class UnknownOrphan(InvitesError, NotFound):
    """There is no orphan with this id, or it is removed."""

    def __init__(self, orphan_id: int) -> None:
        super().__init__(f"unknown orphan {orphan_id}; it may be removed already")


def keep_orphan(session: Session, orphan_id: int, by: str) -> bool:
    """Record a person's decision that a member needs no row. Return False if it was recorded before. Raises
    UnknownOrphan.
    """
    orphan = _locked(session, orphan_id)
    if orphan.state == OrphanState.KEPT:
        return False
    orphan.state, orphan.decided_by = OrphanState.KEPT, by
    session.flush()
    return True


def remove_orphan(session: Session, orphan_id: int, by: str) -> int:
    """Request the removal of an orphan by a person's decision, whatever the settings are. Return the id of the run.

    Raises UnknownOrphan.
    """
    orphan = _locked(session, orphan_id)
    orphan.state, orphan.decided_by = OrphanState.CONFIRMED, by
    session.flush()
    args = {"team_id": orphan.team_id, "orphan_id": orphan.id}
    return enqueue(session, DETECT, key=f"{orphan.team_id}/{orphan.id}", args=args, unless="waiting")


def list_orphans(session: Session, team_id: int | None = None) -> Sequence[Orphan]:
    """Return the orphans of a team or of all teams that are not removed, the oldest first."""
    of_team = Orphan.team_id == (Orphan.team_id if team_id is None else team_id)
    rows = select(Orphan).where(Orphan.state != OrphanState.REMOVED, of_team)
    return session.scalars(rows.order_by(Orphan.first_seen_at, Orphan.id)).all()


def detect_all(run: Run) -> dict[str, int]:
    """Request a search in each team, unless a search of the team is waiting already. Return how many teams there
    are.
    """
    team_ids = run.session.scalars(select(Team.id).order_by(Team.id)).all()
    for team_id in team_ids:
        run.enqueue(DETECT, key=str(team_id), args={"team_id": team_id}, unless="waiting")
    return {"teams": len(team_ids)}


def detect(run: Run, team_id: int, gateway: Gateway) -> dict[str, Any]:
    """Search one team for orphans. Count them, and remove some if that is switched on.

    If no complete listing can be had, nothing changes. Raises ReadFailed, RequestNotSent or OutcomeUnknown, and Later
    if the gateway wants to be asked later.
    """
    gateway_ref = run.session.scalar(select(Team.gateway_ref).where(Team.id == team_id))
    run.checkpoint()
    if gateway_ref is None:
        return {"skipped": "unknown team"}
    members = read(lambda: gateway.members(gateway_ref))
    counts = Sighting(run, team_id, members).record()
    run.checkpoint(counts)
    chosen = _to_remove(run.session, team_id, len(members))
    run.checkpoint()
    removal = Removal(run, team_id, gateway_ref, gateway)
    for orphan_id, email, by in chosen:
        removal.remove(orphan_id, email, by)
    return {**counts, **removal.counts}


def remove_one(run: Run, team_id: int, orphan_id: int, gateway: Gateway) -> dict[str, Any]:
    """Remove an orphan as a person has decided. Raises as ``detect`` does."""
    found = run.session.execute(
        select(Team.gateway_ref, Orphan.email, Orphan.decided_by)
        .join(Orphan, Orphan.team_id == Team.id)
        .where(Orphan.id == orphan_id, Orphan.state == OrphanState.CONFIRMED)
    ).one_or_none()
    run.checkpoint()
    if found is None:
        return {"skipped": "decided otherwise"}
    removal = Removal(run, team_id, found.gateway_ref, gateway)
    removal.remove(orphan_id, found.email, found.decided_by)
    return dict(removal.counts)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A complete listing of a team, as the search sees it."""

    run: Run
    team_id: int
    members: Mapping[str, Member]

    def record(self) -> dict[str, int]:
        """Record who is unexplained. Return how many are suspected and confirmed."""
        explained = self._explained()
        unexplained = sorted(self.members.keys() - explained)
        self._forget(explained)
        self._confirm()
        self._suspect(unexplained)
        states = [orphan.state for orphan in list_orphans(self.run.session, self.team_id)]
        found = {state.value: states.count(state) for state in (OrphanState.SUSPECTED, OrphanState.CONFIRMED)}
        if found["confirmed"]:
            self.run.log.warning("orphans.found", team=self.team_id, orphans=found["confirmed"])
        return found

    def _explained(self) -> set[str]:
        recent = self.run.now - EXPLAINED_FOR
        is_reason = (Seat.state != SeatState.FREED) | (Seat.changed_at > recent)
        return {*self.run.session.scalars(select(Seat.email).where(Seat.team_id == self.team_id, is_reason))}

    def _forget(self, explained: set[str]) -> None:
        """Forget orphans that are explained now, or that the gateway no longer has."""
        for orphan in list_orphans(self.run.session, self.team_id):
            if orphan.email in explained or (
                orphan.email not in self.members and orphan.state == OrphanState.SUSPECTED
            ):
                self.run.session.execute(delete(Orphan).where(Orphan.id == orphan.id))
            elif orphan.email not in self.members:
                _removed(self.run.session, orphan.id, self.run.now, orphan.decided_by or BY_GATEWAY)

    def _confirm(self) -> None:
        """Confirm the orphans that were seen before, long enough ago. All that are left are in the listing."""
        seen = update(Orphan).where(Orphan.team_id == self.team_id, Orphan.state != OrphanState.REMOVED)
        is_second = (Orphan.state == OrphanState.SUSPECTED) & (Orphan.first_seen_at <= self.run.now - APART)
        session = self.run.session
        session.execute(seen.values(last_seen_at=self.run.now, sightings=Orphan.sightings + 1))
        session.execute(seen.where(is_second).values(state=OrphanState.CONFIRMED))

    def _suspect(self, unexplained: Sequence[str]) -> None:
        for first in range(0, len(unexplained), BATCH):
            rows = [
                {"team_id": self.team_id, "email": email, "first_seen_at": self.run.now, "last_seen_at": self.run.now}
                for email in unexplained[first : first + BATCH]
            ]
            self.run.session.execute(insert(Orphan).values(rows).on_conflict_do_nothing())


@dataclass(frozen=True, slots=True)
class Removal:
    """The removal of orphans of a team, one after another."""

    run: Run
    team_id: int
    gateway_ref: str
    gateway: Gateway
    counts: dict[str, int] = field(default_factory=dict)

    def remove(self, orphan_id: int, email: str, by: str) -> None:
        """Remove one orphan, unless something has changed since it was confirmed, and commit. Count the outcome."""
        done = self._remove(orphan_id, email, by)
        self.counts[done] = self.counts.get(done, 0) + 1
        self.run.log.warning("orphan.decided", team=self.team_id, orphan=orphan_id, outcome=done, by=by)
        self.run.checkpoint(self.counts)

    def _remove(self, orphan_id: int, email: str, by: str) -> str:
        if read(lambda: self.gateway.find(self.gateway_ref, email)) is None:
            _removed(self.run.session, orphan_id, self.run.now, BY_GATEWAY)
            self._invite_again(email)  # an earlier attempt may have ended right after the removal
            return "gone"
        is_explained = self.run.session.scalar(select(_has_seat(self.team_id, email)))
        self.run.checkpoint()
        if is_explained:
            return "explained"
        if not self._is_removed(self.gateway.remove(self.gateway_ref, email, request_id(orphan_id))):
            return "not_removed"
        _removed(self.run.session, orphan_id, self.run.now, by)
        self._invite_again(email)
        return "removed"

    def _is_removed(self, outcome: Outcome) -> bool:
        """Return False if the gateway refuses the removal. Raise if it must be requested again: the orphan stays
        confirmed.
        """
        match outcome:
            case Done():
                return True
            case Limited() as limited:
                raise close_team(self.run, self.team_id, limited)
            case NotSent(why=why):
                raise RequestNotSent(why)
            case Unknown(why=why) | NoSeats(why=why):
                raise OutcomeUnknown(why)
            case Refused():
                return False

    def _invite_again(self, email: str) -> None:
        """Invite a person who was given a seat while the gateway was asked to remove the person."""
        given = select(Seat.id).where(Seat.team_id == self.team_id, Seat.email == email)
        seat_id = self.run.session.scalar(given.where(Seat.state.in_([SeatState.INVITED, SeatState.MEMBER])))
        if seat_id is None:
            return
        seat, _ = lock_seat(self.run.session, seat_id)
        if seat.state in {SeatState.INVITED, SeatState.MEMBER}:
            set_state(self.run.session, [seat.id], self.run.now, state=SeatState.RESERVED)
            add_requests(self.run.session, RequestKind.INVITE, [seat.id], self.run.now, priority=seat.priority)


def request_id(orphan_id: int) -> UUID:
    """Return the id of the removal of an orphan, the same for each attempt."""
    return uuid5(NAMESPACE_OID, f"rota.invites.orphan.{orphan_id}")


def _to_remove(session: Session, team_id: int, members: int) -> list[tuple[int, str, str]]:
    """Return the orphans to remove now, the decided and the oldest first, each with its address and who decided."""
    most = max(MOST_REMOVED, int(SHARE_REMOVED * members))
    is_due: ColumnElement[bool] = Orphan.decided_by.is_not(None)
    if InvitesSettings.current().remove_orphans:
        is_due |= Orphan.sightings > 1
    confirmed = select(Orphan.id, Orphan.email, func.coalesce(Orphan.decided_by, BY_SETTING)).where(
        Orphan.team_id == team_id, Orphan.state == OrphanState.CONFIRMED, is_due
    )
    in_order = confirmed.order_by(Orphan.decided_by.is_(None), Orphan.first_seen_at, Orphan.id)
    return [(orphan_id, email, by) for orphan_id, email, by in session.execute(in_order.limit(most))]


def _has_seat(team_id: int, email: str) -> ColumnElement[bool]:
    return exists().where(Seat.team_id == team_id, Seat.email == email, Seat.state != SeatState.FREED)


def _removed(session: Session, orphan_id: int, now: datetime, by: str) -> None:
    done = {"state": OrphanState.REMOVED, "last_seen_at": now, "decided_by": by}
    session.execute(update(Orphan).where(Orphan.id == orphan_id).values(done))


def _locked(session: Session, orphan_id: int) -> Orphan:
    orphan = session.get(Orphan, orphan_id, populate_existing=True, with_for_update=True)
    if orphan is None or orphan.state == OrphanState.REMOVED:
        raise UnknownOrphan(orphan_id)
    return orphan
