"""Claims one run in the thread that works on it, or many runs in one statement before threads start them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from core import database
from core.database import DATABASE_AWAY
from core.jobs import arguments
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import claims
from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.ledger.models import State
from core.observability import logs, metrics
from core.observability.events import (
    RunLimited,
    RunLocked,
    RunNotClaimed,
    RunNotClaimedAhead,
    RunNotReleased,
    RunPaused,
    RunSkipped,
    RunWaits,
    emit,
)
from core.plugins import loading
from core.transport.delivery import Delivery
from core.transport.messages import RUN_ID, is_run_id
from core.worker.membership import Membership


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims runs for this process."""

    engine: Engine
    membership: Membership
    #: The name of this process, for people.
    worker: str
    #: If this many processes died during a run, the run may have killed them. Its next attempt is then made in a
    #: process of its own.
    suspected_after: int = claims.NEVER_SUSPECT
    #: Logs only once that runs cannot be claimed, until a claim succeeds.
    once: logs.EmitOnce = field(default_factory=logs.EmitOnce)

    def claim(self, job: Job, run_id: int) -> Lease | Verdict:
        """Claim the run. Return its lease, or the reason why it was not claimed.

        If PostgreSQL is unavailable, claim nothing. The dispatcher sends the run again later.
        """
        process_id = self.membership.process_id
        if process_id is None:
            self.once.emit(RunNotClaimed("this process is not registered with the ledger"))
            return Verdict.NONE
        try:
            verdict, lease = self._claim(job, run_id, process_id)
        except DATABASE_AWAY as error:
            self.once.emit(RunNotClaimed(database.brief(error)))
            return Verdict.NONE
        self.once.reset()
        if lease is None:
            tell_refusal(job, run_id, verdict)
            return verdict
        self.membership.in_hand.add(lease)
        return lease

    def claim_ahead(self, sent: Sequence[tuple[int, str]]) -> list[Lease]:
        """Claim several runs in one statement. Return the leases of the runs that were claimed.

        ``sent`` has the id and the job of each run. A run that needs a further check is not claimed. If PostgreSQL is
        unavailable, claim nothing.
        """
        process_id = self.membership.process_id
        if process_id is None:
            return []
        registry = loading.current()
        scoped = [(run_id, job, registry.scopes.get(job, ())) for run_id, job in sent]
        forms = {job: arguments.form(registry.jobs[job]) for job in {job for _, job in sent} if job in registry}
        try:
            with database.autocommit(self.engine) as connection:
                claimed = claims.claim_many(connection, scoped, process_id=process_id, worker=self.worker, forms=forms)
        except DATABASE_AWAY as error:
            emit(RunNotClaimedAhead(database.brief(error)))
            return []
        self.membership.in_hand.add(*claimed)
        return claimed

    def unclaim(self, claimed: Sequence[Lease]) -> None:
        """Release runs that were claimed before a thread started them.

        Without PostgreSQL, the heartbeat releases these runs later.
        """
        self.membership.in_hand.remove(*claimed)
        try:
            with database.autocommit(self.engine) as connection:
                claims.unclaim_many(connection, claimed)
        except DATABASE_AWAY as error:
            emit(RunNotReleased(len(claimed), database.brief(error)))

    def _claim(self, job: Job, run_id: int, process_id: int) -> tuple[Verdict, Lease | None]:
        try:
            with database.autocommit(self.engine) as connection:
                return self._claim_on(connection, job, run_id, process_id)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # After a lost connection, the pool replaces all connections that are as old. So a second try is enough.
        with database.autocommit(self.engine) as connection:
            return self._claim_on(connection, job, run_id, process_id)

    def _claim_on(self, connection: Connection, job: Job, run_id: int, process_id: int) -> tuple[Verdict, Lease | None]:
        return claims.claim(
            connection,
            run_id,
            job=job.name,
            process_id=process_id,
            worker=self.worker,
            most_crashes=self.suspected_after,
            scopes=loading.current().scopes.get(job.name, ()),
            form=arguments.form(job),
            gives_way=job.overlap == "skip",
            limits=partial(limits_of, job) if job.limits else None,
        )


def limits_of(job: Job, args: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of a run's limits, filled from ``args`` (JSON values), and the same names as declared."""
    return job.limit_names(args), [limit.name for limit in job.limits]


#: Why a slot was skipped, for each verdict.
SKIPPED = {Verdict.SKIPPED: "overlap", Verdict.BEHIND: "retrying"}


def tell_refusal(job: Job, run_id: int, verdict: Verdict) -> None:
    """Log and count a run that was skipped or paused, or that waits."""
    if verdict in SKIPPED:
        metrics.run_ended(job.name, State.SKIPPED)
        emit(RunSkipped(job.name, run_id, SKIPPED[verdict]))
    if verdict == Verdict.WAITING:
        emit(RunWaits(job.name, run_id))
    if verdict == Verdict.LIMITED:
        emit(RunLimited(job.name, run_id))
    if verdict == Verdict.LOCKED:
        emit(RunLocked(job.name, run_id))
    if verdict in (Verdict.PAUSED, Verdict.HELD):
        emit(RunPaused(job.name, run_id))


@dataclass(frozen=True, slots=True)
class ClaimingAhead:
    """Claims runs that a worker's threads are about to start, many in one statement."""

    registry: Registry
    claims: Claims

    def prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Give each delivery a lease, if its run can be claimed in a batch.

        If a run cannot be claimed in a batch, its thread claims it later.
        """
        sent = {run_id: delivery for delivery in deliveries if (run_id := self._run_of(delivery)) is not None}
        if len(sent) > 1:
            for lease in self.claims.claim_ahead([(run_id, each.actor_name) for run_id, each in sent.items()]):
                sent[lease.run_id].claimed(lease)

    def undo(self, deliveries: Sequence[Delivery]) -> None:
        """Release the claimed runs of deliveries that are requeued."""
        leases = [delivery.lease for delivery in deliveries if delivery.lease is not None]
        if leases:
            self.claims.unclaim(leases)

    def _run_of(self, delivery: Delivery) -> int | None:
        run_id = delivery.options.get(RUN_ID)
        job = self.registry.jobs.get(delivery.actor_name)
        is_of_ledger = job is not None and job.ledger and not job.limits
        return run_id if is_of_ledger and is_run_id(run_id) else None
