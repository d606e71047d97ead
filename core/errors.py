"""Rota's errors, as one tree.

RotaError
├── SettingsError          the environment is not usable; lists every problem
├── DeclarationError       a job or a schedule is declared wrongly; refused when its plugin loads
├── PluginError            a plugin cannot be used
├── NotFound               the thing that a caller named does not exist
├── UnknownJob             no loaded plugin has a job of that name
├── BadArguments           arguments that do not fit the job's signature
│   └── ArgumentsMisfit    the arguments of a received message do not fit here
├── BadResult              a result that JSON cannot hold
├── NaiveTime              a time without a time zone, or a value that is not a time
├── PauseError             the scope to pause is paused already, or the scope to resume is not
├── ScheduleError          a schedule made at run time is refused; nothing was changed
├── SelectionError         the selection has no run, or a run in the wrong state; nothing was changed
│   └── UnknownRun         the ledger has no run of that id
├── IncompleteError        an operation changed only some of the selected runs
├── BadTime                a text that is not a time, or a time that is not allowed here
├── Forbidden              the caller may not do this
├── NotAuthenticated       the caller is not known
├── TokenError             a token cannot be made or revoked in this way
├── PlanError              a plan cannot be made, confirmed or cancelled in this way
│   ├── UnknownPlan        there is no such plan or operation
│   └── ConfirmationRequired  the digest or the phrase of a plan is missing or wrong
├── LeftoversError         leftovers in Redis cannot be looked at
│   └── UnknownOwner       it is not known whose messages Redis carries
├── LeaseLost              this worker no longer owns the run; stop at once
├── ForkedChild            a child that a job has forked asked for the run's session
├── NoSubject              the table of a job's subjects does not exist
├── NotMigrated            the database lacks a migration
├── LedgerError            PostgreSQL cannot be reached, or refused a query
├── HiddenLedger           the ledger exists, but the role cannot see it
├── UnfitServers           PostgreSQL or Redis exists, and can never serve this process
├── BadProgress            progress that PostgreSQL cannot store
├── Later                  a job raises it to postpone its run; this is not a failure
└── EmbeddedServerError    an embedded PostgreSQL or Redis did not start

Interrupted                a BaseException, so that ``except Exception`` in a job does not swallow it
├── TimeLimitExceeded      the soft limit of the job has passed
├── Cancelled              the run was cancelled
└── AttemptLost            the lease of the attempt is lost
"""

import difflib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import DontWrapMixin


class RotaError(Exception):
    """The base class of every error that Rota raises on purpose."""


class SettingsError(RotaError):
    """The environment is not usable. The message lists every problem, one per line."""


class DeclarationError(RotaError):
    """A job or a schedule is declared wrongly."""


class PluginError(RotaError):
    """A plugin cannot be used. The message has the reason."""


class NotFound(RotaError):
    """The thing that the caller named does not exist. A plugin raises this error in a route, which then answers 404."""


class UnknownJob(RotaError):
    """No loaded plugin has a job of that name."""


class BadArguments(RotaError):
    """The arguments of a run do not fit the job's signature. The error never holds their values."""


class ArgumentsMisfit(BadArguments):
    """The arguments of a message do not fit the job as this process declares it. They may fit another release."""


class BadResult(RotaError):
    """A job returned a value that JSON cannot hold, or a value that is too large."""


class NaiveTime(RotaError, DontWrapMixin):
    """A time without a time zone, or a value that is not a time. SQLAlchemy raises it unwrapped."""


class PauseError(RotaError):
    """The scope to pause is paused already, or the scope to resume is not paused."""


class ScheduleError(RotaError):
    """A schedule made at run time is refused, or does not exist. Nothing was changed."""


class SelectionError(RotaError):
    """The selection has no run, or a run in the wrong state. Nothing was changed."""


class UnknownRun(SelectionError):
    """The ledger has no run with this id. Perhaps the run was deleted after ROTA_RETENTION_DAYS."""


class IncompleteError(RotaError):
    """An operation changed only some of the selected runs. The message says how many."""


class BadTime(RotaError):
    """A text that is not a time, or a time that is not allowed here."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        #: The option for which the time was given, such as ``since``.
        self.option = option


class Forbidden(RotaError):
    """The caller is known, and may not do this. Nothing was changed."""


class NotAuthenticated(RotaError):
    """The caller has shown no token, or one that is not valid."""


class TokenError(RotaError):
    """A token cannot be made or revoked in this way. Nothing was changed."""


class PlanError(RotaError):
    """A plan cannot be made, confirmed or cancelled in this way."""


class UnknownPlan(PlanError):
    """There is no such plan or operation."""


class ConfirmationRequired(PlanError):
    """The digest or the phrase of a plan is missing or wrong. ``plan`` is the plan, if the caller has none yet."""

    def __init__(self, said: str, plan: Any = None) -> None:
        super().__init__(said)
        self.plan = plan


class LeftoversError(RotaError):
    """Leftovers in Redis cannot be looked at or removed: Redis is away, or carries another ledger's messages."""


class UnknownOwner(LeftoversError):
    """It is not known whose messages Redis carries."""


class LeaseLost(RotaError):
    """This worker no longer owns the run, and must not write anything more for the run."""


class ForkedChild(RotaError):
    """A child process that a job has forked cannot use the run's transaction. Only its parent can."""


class NoSubject(RotaError):
    """The table of a job's subjects does not exist, so that no subject can be looked up."""


class NotMigrated(RotaError):
    """The database lacks a migration. ``rota db upgrade`` applies the migration."""


class LedgerError(RotaError):
    """PostgreSQL cannot be reached, or refused a query. The message says what to do."""


class HiddenLedger(RotaError):
    """The ledger exists, in a schema that the role may not use or that is not in its search_path."""


class UnfitServers(RotaError):
    """PostgreSQL or Redis answers, but this process can never work with it. The message says why and what to do."""


class BadProgress(RotaError):
    """The progress that a job reported cannot be stored."""


#: A run may be postponed for this long in all, counted from the first time.
LONGEST_LATER = timedelta(days=7)


class Later(RotaError):
    """A job raises this to postpone its run to a later time. It is not a failure.

    Give one of ``in_``, a span counted from now, and ``at``, an aware time after the start of the attempt. ``reason``
    is for people. The work since the last checkpoint is rolled back. A run may be postponed for 7 days in all, and not
    past its ``expires``. A run that is postponed for longer is dead with the reason ``later``.

    Raises BadTime, and NaiveTime for an ``at`` without a time zone. The attempt then fails with that error.
    """

    def __init__(self, *, in_: timedelta | None = None, at: datetime | None = None, reason: str = "") -> None:
        if (in_ is None) == (at is None):
            raise BadTime("Later needs either in_= or at=, the time of the next attempt")
        if in_ is not None:
            check_span(in_)
        if at is not None:
            check_instant(at)
        if not isinstance(reason, str):
            raise BadTime(f"Later: reason={reason!r} must be a string")
        super().__init__(reason)
        self.in_ = in_
        self.at = at
        self.reason = reason


def check_span(in_: object) -> None:
    """Raise BadTime unless a run may be postponed by ``in_``."""
    if not isinstance(in_, timedelta):
        raise BadTime(f"Later: in_={in_!r} must be a timedelta, such as timedelta(minutes=5)")
    if not timedelta(0) < in_ <= LONGEST_LATER:
        raise BadTime(f"Later: in_={in_} must be more than 0 and at most {LONGEST_LATER.days} days")


def check_instant(at: object) -> None:
    """Raise BadTime unless ``at`` is a datetime, and NaiveTime if it has no time zone."""
    if not isinstance(at, datetime):
        raise BadTime(f"Later: at={at!r} must be a datetime with a time zone, such as run.now + timedelta(minutes=5)")
    if at.utcoffset() is None:
        raise NaiveTime(f"Later: at={at!r} has no time zone; give an aware datetime")


class EmbeddedServerError(RotaError):
    """An embedded server did not start. The message holds the end of the server's log."""


class Interrupted(BaseException):
    """Another thread raises this error in a job's thread. The error's class tells why. Clean up, and let the error
    propagate.
    """


class TimeLimitExceeded(Interrupted):
    """The job's soft limit has passed."""


class Cancelled(Interrupted):
    """The run was cancelled. Nothing more can be committed for it."""


class AttemptLost(Interrupted):
    """The lease is lost: the session's connection is closed, and nothing more can be committed for the run."""


#: A name whose similarity to a known name (difflib's ratio) is at least this is considered a misspelling.
MISSPELT = 0.8


def is_misspelt(name: str, known: Iterable[str]) -> bool:
    """Return whether ``name`` is probably a misspelling of one of ``known``.

    A known name with another word before it is not a misspelling: ``EXPIRY_RETENTION_DAYS`` does not mean
    ``RETENTION_DAYS``.
    """
    others = [other for other in known if not name.endswith(f"_{other}")]
    return bool(difflib.get_close_matches(name, others, n=1, cutoff=MISSPELT))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` with the nearest known name, or an empty text if no name is near."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
