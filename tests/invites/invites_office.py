"""A service with a real gateway: requests are sent by the jobs, with the real claim and commit."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from invites_world import World, email
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from core import Job
from core.ledger.models import RunRow
from core.testing import RunJob
from plugins.invites import gateway_jobs as jobs
from plugins.invites.models import Orphan, Request, Seat, Team
from tests.support.simulated_gateway import GatewayProcess


@dataclass
class Office:
    """A service that invites people through one gateway."""

    world: World
    server: GatewayProcess
    run_job: RunJob

    @property
    def session(self) -> Session:
        return self.world.session

    def team(self, seats: int = 3, members: dict[str, str] | None = None) -> int:
        """Make the team ``red`` here and at the gateway, where it may have members that nobody has invited."""
        self.server.team("red", seats, {email(name): state for name, state in (members or {}).items()})
        return self.world.team("red", seats)

    def redeems(self, *names: str) -> None:
        """Let people ask for seats."""
        self.world.redeems(self.world.code(), *names)

    def now(self) -> datetime:
        """Return the time of the database."""
        self.session.rollback()
        return self.session.scalars(text("SELECT clock_timestamp()")).one()

    def sends(self, kind: str | None = None) -> list[RunRow]:
        """Execute an attempt of a run for each open request, one after another."""
        return [self.send(request_id) for request_id in self.world.open_requests(kind)]

    def send(self, request_id: Any) -> RunRow:
        """Execute the next attempt of the run that sends a request, or of another run if that one is over."""
        waiting = text("""
            UPDATE rota_runs SET due_at = clock_timestamp()
            WHERE job = 'process-invite' AND key = :key AND state IN ('queued', 'retrying') RETURNING id
        """)
        run_id = self.session.scalar(waiting, {"key": str(request_id)})
        self.session.commit()
        if run_id is None:
            args = {"request_id": str(request_id), "team_id": 1}
            return self.run_job(jobs.process_invite, key=str(request_id), args=args)
        self.run_job.executor.execute(jobs.process_invite, run_id)
        return self.run_job.row(run_id)

    def runs(self, job: Job, *, later: timedelta = timedelta(0), **args: Any) -> RunRow:
        """Execute an attempt of a run of another job, as if that much time had passed."""
        return self.run_job(job, key="red", args={"team_id": 1, **args}, now=self.now() + later)

    def requests(self) -> list[tuple[str, str, str | None]]:
        """Return the kinds, the states and the problems of all requests."""
        self.session.rollback()
        rows = select(Request.kind, Request.state, Request.problem).order_by(Request.created_at, Request.seat_id)
        return [(kind, state, problem) for kind, state, problem in self.session.execute(rows)]

    def sent(self) -> dict[str, int]:
        """Return how often each person was invited, by the gateway's own count."""
        return {address.partition("@")[0]: times for (_, address), times in self.server.sent().items()}

    def orphans(self) -> dict[str, str]:
        """Return the states of orphans."""
        self.session.rollback()
        rows = select(Orphan.email, Orphan.state).order_by(Orphan.id)
        return {address.partition("@")[0]: state for address, state in self.session.execute(rows)}

    def age(self, by: timedelta) -> None:
        """Let all rows have changed that much earlier."""
        self.session.execute(update(Seat).values(changed_at=Seat.changed_at - by))
        self.session.execute(update(Request).values(changed_at=Request.changed_at - by))
        self.session.commit()

    def closed_until(self) -> datetime | None:
        """Return the time until which the team is closed."""
        self.session.rollback()
        return self.session.scalar(select(Team.closed_until))
