"""The overlap lock: only the process that has claimed a run works on the run, under a lease."""

from typing import Any

from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.turns import Turn
from core.middleware.execution import Execution, Layer, Proceed
from core.worker import isolation
from core.worker.claiming import Claims
from core.worker.wakes import Room, Wakes


class OverlapLock(Layer):
    """Claims the run. If the claim is refused, the inner layers are not called, and the verdict is the outcome."""

    def __init__(self, claims: Claims, wakes: Wakes) -> None:
        """``wakes`` wakes the runs that wait for the end of another run, or for a limit."""
        self._claims = claims
        self._wakes = wakes

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Claim the run, unless it is claimed already, and keep the lease until the run's end is recorded."""
        carried = execution.carried
        claimed = (carried.lease if carried is not None else None) or self._claims.claim(
            execution.job, execution.run_id
        )
        if claimed == Verdict.SUSPECT:
            return isolation.work(execution.job.name, execution.run_id)
        if not isinstance(claimed, Lease):
            if claimed == Verdict.WAITING:
                self._wakes.parked(execution.job, execution.run_id)
            if claimed in (Verdict.LIMITED, Verdict.WAITING) and execution.job.limits:
                self._wakes.limited(execution.run_id)
            if claimed == Verdict.LOCKED:
                self._wakes.locked(execution.run_id)
            return claimed
        execution.lease = claimed
        return proceed(execution)

    def ended(self, execution: Execution, status: str) -> None:
        """Forget the lease, which has ended with the run, and wake the runs that wait for the end of this run."""
        lease = execution.lease
        if lease is None:
            return
        self._claims.membership.in_hand.remove(lease)
        for name in lease.limits or ():
            self._wakes.add(Room(name))
        if execution.job.exclusive and (execution.is_awaited or status != State.SUCCEEDED):
            self._wakes.add(Turn(lease.job, lease.key))
