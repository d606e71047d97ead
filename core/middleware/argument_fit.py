"""Arguments that fit: a run or message belongs to a process whose declaration of the job its arguments fit.

While two releases are side by side, a job may be declared in two forms, and what is asked for in one does not fit the
other. A run that does not fit is left, uncounted, to a live worker that may have its job in another form; its row keeps
the forms that have refused it. A run that every live form has refused goes on to its end, ``dead``.
"""

from functools import partial
from typing import Any

from core.errors import BadArguments
from core.jobs import arguments
from core.ledger import claims
from core.middleware.execution import Execution, Layer, Proceed
from core.observability.events import RunMisfit, emit
from core.worker.claiming import Claims
from core.worker.outcomes import Recorder


class ArgumentFit(Layer):
    """Reads the arguments of a run; one that does not fit goes no further if it may fit elsewhere."""

    def __init__(self, claims: Claims, recorder: Recorder) -> None:
        self._claims = claims
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Go on with the arguments, or with why they do not fit, unless the run is left to others."""
        lease = execution.lease
        assert lease is not None, "a run is claimed before it is judged"
        try:
            execution.kwargs = arguments.decode(execution.job, lease.args)
        except BadArguments as misfit:
            execution.misfit = misfit
            if self._is_left(execution):
                return claims.Verdict.MISFIT
        return proceed(execution)

    def _is_left(self, execution: Execution) -> bool:
        lease, form = execution.lease, arguments.form(execution.job)
        assert lease is not None
        if not self._recorder.record(lease, partial(claims.refuse, lease=lease, form=form)):
            return False
        execution.lease = None  # nor has it an end
        self._claims.membership.in_hand.remove(lease)
        emit(RunMisfit(execution.job.name, lease.run_id))
        return True


class MessageFit(Layer):
    """Reads the arguments of a message of the fast lane."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Go on with the arguments. Raises ArgumentsMisfit."""
        with arguments.judging():
            execution.kwargs = arguments.decode(execution.job, execution.args)
        return proceed(execution)
