"""The overlap lock: only the process that has claimed a run works on it, under a lease."""

from typing import Any

from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.middleware.execution import Execution, Layer, Proceed
from core.worker import isolation
from core.worker.claiming import Claims


class OverlapLock(Layer):
    """Claims the run. If the claim is refused, the inner layers are not called, and the verdict is the outcome."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Claim the run, unless it was claimed ahead, and keep the lease until the run's end is recorded."""
        carried = execution.carried
        claimed = (carried.lease if carried is not None else None) or self._claims.claim(
            execution.job, execution.run_id
        )
        if claimed == Verdict.SUSPECT:
            return isolation.work(execution.job.name, execution.run_id)
        if not isinstance(claimed, Lease):
            return claimed
        execution.lease = claimed
        return proceed(execution)

    def ended(self, execution: Execution, status: str) -> None:
        """Forget the lease, which has ended with the run."""
        if execution.lease is not None:
            self._claims.membership.in_hand.remove(execution.lease)
