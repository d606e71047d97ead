"""``cancel`` cancels a run in the caller's own transaction."""

from sqlalchemy.orm import Session

from core.enqueue import plain_session
from core.errors import SelectionError
from core.ledger import cancels, history, leases
from core.ledger.models import State


def cancel(session: Session, run_id: int, *, reason: str | None = None, by: str | None = None) -> State:
    """Cancel a run when the caller's transaction commits. Return the state that the run had before.

    A waiting run (``queued`` or ``retrying``) ends at once: it is dead with the reason ``cancelled``. A ``running`` run
    cannot commit any more: ``Cancelled`` is raised in its thread, and its SQL statement is cancelled. The run ends when
    its function has returned. Until then, it counts as running. Cancelling a running run again changes nothing.

    ``reason`` and ``by`` are for people. By default, ``by`` is the job whose run calls this function, or ``an
    application``. The call locks the run's row until the transaction ends, so commit soon.

    Raises SelectionError, and changes nothing, if the run does not exist, is over, or is the caller's own run. Raises
    RotaError if ``session`` has another type.
    """
    session = plain_session(session)
    lease = leases.of(session)
    if lease is not None and lease.run_id == run_id:
        raise SelectionError(f"run {run_id} cannot cancel itself; raise an error, or return")
    caller = f"run {lease.run_id} of job {lease.job}" if lease is not None else "an application"
    found = cancels.cancel(session, [run_id], by=by or caller, reason=reason)
    if not found:
        raise SelectionError(refusal(session, run_id))
    return found[0].state


def refusal(session: Session, run_id: int) -> str:
    """Return why a run cannot be cancelled."""
    run = history.run(session.connection(), run_id)
    if run is None:
        return f"run {run_id} does not exist"
    return f"run {run_id} is over and cannot be cancelled: it is {run.state}{f' ({run.reason})' if run.reason else ''}"
