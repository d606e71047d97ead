"""Checks that the arguments of a run or message fit the job as this process declares it.

While two releases run at the same time, they may declare a job with different parameters. The parameters of a job are
its *form*. Arguments for one form may not fit another form. A run whose arguments do not fit here is released,
uncounted, if a live worker may have its job in another form. The run's row lists the forms that have refused the run. A
run that all live forms have refused ends as ``dead``.
"""

from functools import partial
from typing import Any

from core.errors import ArgumentsMisfit, BadArguments
from core.jobs import arguments
from core.ledger import claims
from core.middleware.execution import Execution, Layer, Proceed
from core.observability.events import RunMisfit, emit
from core.worker.claiming import Claims
from core.worker.outcomes import Recorder


class ArgumentFit(Layer):
    """Decodes the arguments of a run. If they do not fit here but may fit elsewhere, the run is released."""

    def __init__(self, claims: Claims, recorder: Recorder) -> None:
        self._claims = claims
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers with the decoded arguments.

        If the arguments do not fit here, release the run, or call the inner layers with the error if no live worker has
        another form.
        """
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
        execution.lease = None  # no outcome is recorded without a lease
        self._claims.membership.in_hand.remove(lease)
        emit(RunMisfit(execution.job.name, lease.run_id))
        return True


class MessageFit(Layer):
    """Decodes the arguments of a message of the fast lane."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers with the decoded arguments. Raises ArgumentsMisfit."""
        try:
            execution.kwargs = arguments.decode(execution.job, execution.args)
        except BadArguments as misfit:
            raise ArgumentsMisfit(str(misfit)) from None
        return proceed(execution)
