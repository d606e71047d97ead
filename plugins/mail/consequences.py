"""The consequences of a failed poll and of a busy server for the account, committed although the poll has ended."""

from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from core import Run, pause_schedule
from plugins.mail.accounts import POLL
from plugins.mail.errors import LoginGivenUp, LoginRefused, MailError, ServerBusy
from plugins.mail.models import Account, AccountState

#: After this many refused log-ins in a row, no log-in is tried until a person acts. Providers ban clients at about ten.
MOST_REFUSALS = 3
SHORTEST_POSTPONEMENT, LONGEST_POSTPONEMENT = timedelta(minutes=1), timedelta(hours=1)


def count_refusal(run: Run, account_id: int, error: LoginRefused) -> LoginRefused:
    """Count a refused log-in, and stop polling at the third in a row. Return the error to raise."""
    account = _locked(run.session, account_id)
    if account is None:
        return error
    account.auth_failures += 1
    is_over = account.auth_failures >= MOST_REFUSALS or isinstance(error, LoginGivenUp)
    _give_reason(account, error)
    if is_over and account.state == AccountState.ACTIVE:
        account.state = AccountState.AUTH_FAILED
        run.session.flush()
        pause_schedule(run.session, POLL, key=run.key, reason=str(error))
    run.checkpoint()
    if not is_over:
        return error
    return LoginGivenUp(f"{error}; it is not polled until its credentials are changed, or `rota mail resume`")


def show_failure(run: Run, account_id: int, error: MailError) -> None:
    """Show the error of a failed poll as the reason of the account, until a poll can open the folder again."""
    account = _locked(run.session, account_id)
    if account is not None:
        _give_reason(account, error)
    run.checkpoint()


def postpone(run: Run, account_id: int, error: ServerBusy) -> dict[str, Any]:
    """Postpone polls, for longer each time, since the server asked for that. This is not a failure."""
    account = _locked(run.session, account_id)
    if account is None:
        return {"skipped": "unknown account"}
    wait = min(SHORTEST_POSTPONEMENT * 2 ** min(account.postponements, 10), LONGEST_POSTPONEMENT)
    account.postponements += 1
    account.postponed_until = func.now() + wait
    _give_reason(account, error)
    run.checkpoint()
    run.log.warning("mailbox.postponed", account=account_id, seconds=wait.seconds, reason=str(error))
    return {"postponed_seconds": int(wait.total_seconds()), "reason": str(error)}


def forget_troubles(session: Session, account_id: int) -> None:
    """Reset the counts of refused log-ins and postponements, since a log-in has succeeded. A pause by a person keeps
    its reason.
    """
    account = _locked(session, account_id)
    if account is None:
        return
    account.auth_failures = account.postponements = 0
    account.postponed_until = None
    if account.state == AccountState.ACTIVE:
        account.reason = None


def _give_reason(account: Account, error: MailError) -> None:
    """Store an error as the reason of an account; a pause by a person keeps its reason."""
    if account.state == AccountState.ACTIVE:
        account.reason = str(error)


def _locked(session: Session, account_id: int) -> Account | None:
    return session.get(Account, account_id, populate_existing=True, with_for_update=True)
