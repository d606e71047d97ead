"""Sends one request to the gateway, and records its outcome.

1. In one transaction, the request becomes ``sent``.
2. No transaction is open while the gateway is asked.
3. In another transaction, the outcome is recorded. If there is none, the request is ``unknown``.

A process may die at any point. If a request was ``sent`` or ``unknown`` when an attempt begins, it may have had its
effect. So the attempt first asks the gateway for the person, and only then sends the request again, with the same id.
So nobody gets two invitations, even from a gateway that has forgotten the id.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update

from core import Later, Run, close_limit
from plugins.invites import outcomes
from plugins.invites.gateway import Done, Gateway, Limited, NoSeats, NotSent, Outcome, ReadFailed, Refused, Unknown
from plugins.invites.gateway.errors import OutcomeUnknown, RequestNotSent
from plugins.invites.models import Request, RequestKind, RequestState, Team
from plugins.invites.outcomes import Sending
from plugins.invites.requests import OPEN

RECONCILE = "reconcile-invites"
#: The limit of a team; its name with the argument filled in closes the limit of one team.
TEAM_LIMIT = "invites:team:{team_id}"
#: The outcome of a request in these states may have happened already.
DOUBTFUL = (RequestState.SENT, RequestState.UNKNOWN)


def process(run: Run, request_id: UUID, gateway: Gateway) -> dict[str, Any]:
    """Send a request, unless its outcome is known. Return the outcome.

    Raises Later if the gateway wants to be asked later. Raises RequestNotSent or OutcomeUnknown; then the request stays
    open, and must be sent again.
    """
    is_doubtful = run.session.scalar(select(Request.state).where(Request.id == request_id)) in DOUBTFUL
    sending = outcomes.begin(run.session, request_id, run.now)
    run.checkpoint()
    if sending is None:
        return {"outcome": "known"}
    return Processing(run, gateway, sending, is_doubtful).work()


@dataclass(frozen=True, slots=True)
class Processing:
    """One attempt to have a request carried out. An earlier attempt may have had its effect."""

    run: Run
    gateway: Gateway
    sending: Sending
    is_doubtful: bool

    def work(self) -> dict[str, Any]:
        """Ask the gateway, and record the outcome. Return it, or raise as ``process`` does."""
        match self._outcome():
            case Done() as done:
                return self._confirmed(done)
            case NoSeats() as full if self.sending.kind == RequestKind.INVITE:
                return self._no_room(full)
            case Refused() as refused:
                return self._refused(refused)
            case Limited() as limited:
                raise self._limited(limited)
            case NotSent() as unsent:
                raise self._not_sent(unsent)
            case NoSeats() | Unknown() as unknown:
                raise self._unknown(unknown)

    def _outcome(self) -> Outcome:
        settled = self._settled() if self.is_doubtful else None
        if settled is not None:
            return settled
        ask = self.gateway.invite if self.sending.kind == RequestKind.INVITE else self.gateway.remove
        return ask(self.sending.gateway_ref, self.sending.email, self.sending.request_id)

    def _settled(self) -> Done | Limited | Unknown | None:
        """Return the outcome of earlier attempts as the gateway has it, or None if the request must be sent again."""
        try:
            member = self.gateway.find(self.sending.gateway_ref, self.sending.email)
        except ReadFailed as error:
            if error.wait is not None:
                return Limited(error.wait, str(error), 429, is_certain=False)
            return Unknown(str(error))
        if self.sending.kind == RequestKind.INVITE:
            return None if member is None else Done(200, already=True, has_accepted=member.has_accepted)
        return Done(404, already=True) if member is None else None

    def _confirmed(self, done: Done) -> dict[str, Any]:
        request_id, session = self.sending.request_id, self.run.session
        outcomes.confirm(session, request_id, self.run.now, status=done.status, is_member=done.has_accepted)
        return {"outcome": "confirmed", "already": done.already}

    def _no_room(self, full: NoSeats) -> dict[str, Any]:
        outcomes.no_room(self.run.session, self.sending.request_id, self.run.now, status=full.status)
        args = {"team_id": self.sending.team_id}
        self.run.enqueue(RECONCILE, key=str(self.sending.team_id), args=args, unless="waiting")
        self.run.log.warning("team.full_at_gateway", team=self.sending.team_id)
        return {"outcome": "no seats"}

    def _refused(self, refused: Refused) -> dict[str, Any]:
        outcomes.refuse(
            self.run.session, self.sending.request_id, self.run.now, status=refused.status, problem=refused.why
        )
        told = {"kind": self.sending.kind.value, "reason": refused.why}
        self.run.log.warning("request.refused", request=str(self.sending.request_id), **told)
        return {"outcome": "refused", **told}

    def _limited(self, limited: Limited) -> Later:
        """Close the limit of the team until the time that the gateway has named. This is not a failure."""
        if limited.is_certain:
            self._put_back(limited.why, limited.status)
        else:
            self._leave_unknown(limited.why, limited.status)
        return close_team(self.run, self.sending.team_id, limited)

    def _not_sent(self, unsent: NotSent) -> RequestNotSent:
        self._put_back(unsent.why, unsent.status)
        self.run.checkpoint()
        return RequestNotSent(unsent.why)

    def _unknown(self, unknown: Unknown | NoSeats) -> OutcomeUnknown:
        self._leave_unknown(unknown.why, unknown.status)
        self.run.checkpoint()
        return OutcomeUnknown(unknown.why)

    def _put_back(self, why: str, status: int | None) -> None:
        """Record that this attempt had no effect. If an earlier attempt may have had an effect, the outcome stays
        unknown.
        """
        if self.is_doubtful:
            return self._leave_unknown(why, status)
        outcomes.put_back(self.run.session, self.sending.request_id, self.run.now, status=status)
        return self._tell(why)

    def _leave_unknown(self, why: str, status: int | None) -> None:
        outcomes.leave_unknown(self.run.session, self.sending.request_id, self.run.now, status=status)
        self._tell(why)

    def _tell(self, why: str) -> None:
        """Show the problem with a request whose outcome is still open."""
        is_open = (Request.id == self.sending.request_id) & Request.state.in_(OPEN)
        self.run.session.execute(
            update(Request).where(is_open).values(problem=why, changed_at=self.run.now),
            execution_options={"synchronize_session": "fetch"},
        )


def close_team(run: Run, team_id: int, limited: Limited) -> Later:
    """Send nothing for a team until the time that the gateway has named, and commit. Return what the run raises."""
    closed = update(Team).where(Team.id == team_id)
    run.session.execute(closed.values(closed_until=later_of(limited.wait)))
    close_limit(run.session, TEAM_LIMIT.format(team_id=team_id), until=limited.wait, reason=limited.why)
    run.checkpoint()
    return Later(in_=limited.wait, reason=limited.why)


def later_of(wait: timedelta) -> Any:
    """Return the later of the time up to which a team is closed, and of the time after ``wait``, by the database."""
    return func.greatest(Team.closed_until, func.clock_timestamp() + wait)  # GREATEST ignores NULL
