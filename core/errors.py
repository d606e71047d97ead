"""What can go wrong, as one tree.

RotaError
├── SettingsError          the environment is not usable; lists every problem
├── DeclarationError       a job or a schedule is declared wrongly; refused when its plugin loads
├── PluginError            a plugin cannot be used
├── UnknownJob             no loaded plugin has a job of that name
├── BadArguments           arguments that do not fit the job's signature
├── BadResult              a result that JSON cannot hold
├── NaiveTime              a time without a time zone, or no time at all
├── PauseError             what is to be paused is paused, or what is to be resumed is not
├── SelectionError         no run is meant, or one that is not as it must be; nothing was changed
├── IncompleteError        something was done to a part of the runs that it was meant for
├── BadTime                a text that is no time, or none that will do here
├── LeaseLost              another worker owns the run now, or nobody does; stop at once
├── ForkedChild            a child that a job has forked asked for the run's session
├── NotMigrated            the database lacks a migration
├── LedgerError            PostgreSQL cannot be reached, or refused a question
├── HiddenLedger           the ledger is there, and the role cannot see it
├── BadProgress            progress that PostgreSQL cannot store
└── EmbeddedServerError    an embedded PostgreSQL or Redis did not start

TimeLimitExceeded          a BaseException, so that ``except Exception`` in a job does not swallow it
"""

import difflib
from collections.abc import Iterable

from sqlalchemy.exc import DontWrapMixin


class RotaError(Exception):
    """The root of every error that Rota raises on purpose."""


class SettingsError(RotaError):
    """The environment is not usable; the message lists every problem, one to a line."""


class DeclarationError(RotaError):
    """A job or a schedule is declared wrongly."""


class PluginError(RotaError):
    """A plugin cannot be used; the message says why."""


class UnknownJob(RotaError):
    """No loaded plugin has a job of that name."""


class BadArguments(RotaError):
    """The arguments of a run do not fit the job's signature. Never holds their values."""


class BadResult(RotaError):
    """A job returned what JSON cannot hold, or too much of it."""


class NaiveTime(RotaError, DontWrapMixin):
    """A time without a time zone, or no time at all. SQLAlchemy lets it through as it is."""


class PauseError(RotaError):
    """What is to be paused is paused already, or what is to be resumed is not."""


class SelectionError(RotaError):
    """No run is meant, or one that is not as it must be; nothing was changed."""


class IncompleteError(RotaError):
    """Something was done to a part of the runs that it was meant for; the message says to how many."""


class BadTime(RotaError):
    """A text that is no time, or none that will do here."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        #: What it was given as, such as ``since``.
        self.option = option


class LeaseLost(RotaError):
    """The run is no longer this worker's; nothing more may be written for it."""


class ForkedChild(RotaError):
    """A child that a job has forked has no part in the run; its parent goes on with that."""


class NotMigrated(RotaError):
    """The database lacks a migration; ``rota db upgrade`` brings it."""


class LedgerError(RotaError):
    """PostgreSQL cannot be reached, or refused a question; the message says what to do."""


class HiddenLedger(RotaError):
    """The ledger is there, in a schema that the role may not use or that its search_path lacks."""


class BadProgress(RotaError):
    """What a job told as its progress cannot be stored."""


class EmbeddedServerError(RotaError):
    """An embedded server did not start; the message holds the end of its log."""


class TimeLimitExceeded(BaseException):
    """Raised in a job's thread when its soft limit has passed. Clean up and let it go."""


#: difflib's ratio from which a name is taken for another one, misspelt.
MISSPELT = 0.8


def is_misspelt(name: str, known: Iterable[str]) -> bool:
    """Whether ``name`` is so near to one of ``known`` that this must be meant.

    One of them with a word before it is not: ``EXPIRY_RETENTION_DAYS`` is something else than ``RETENTION_DAYS``.
    """
    others = [other for other in known if not name.endswith(f"_{other}")]
    return bool(difflib.get_close_matches(name, others, n=1, cutoff=MISSPELT))


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest known name, or nothing if none is near."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
