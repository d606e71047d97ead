"""``@job`` and the ``Job`` that it makes. The declaration of a job is independent of Dramatiq."""

import inspect
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Literal, get_args

from core.errors import DeclarationError
from core.jobs.keyed import Keyed, keyed_problems
from core.jobs.limit import Limit, defaults, limit_problems
from core.jobs.schedules import Schedule
from core.jobs.subject import Subject, subject_problems

Backoff = Literal["fixed", "exponential"]
Overlap = Literal["skip", "wait", "allow"]
Misfire = Literal["latest", "all", "skip"]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

JOB_NAME = re.compile(r"[a-z][a-z0-9_-]{0,99}")
#: Dramatiq's rule for queue names, without capitals and dots: Dramatiq uses the suffixes ``.DQ`` and ``.XQ`` itself.
QUEUE_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,99}")
#: An exponential delay stops growing here, unless the job has its own ``longest_delay``.
LONGEST_RETRY_DELAY = timedelta(days=1)
#: The longest allowed timedelta. Adding ``timedelta.max`` to any time overflows.
LONGEST_SPAN = timedelta(days=366)
#: Runs with a larger priority start first.
HIGHEST_PRIORITY = 9
#: The largest misfire cap. A job that needs to run more late slots needs another schedule.
LARGEST_CAP = 1_000_000
#: The smallest part of a delay that remains after jitter.
LEAST_OF_DELAY = 0.5
POSITIONAL_KINDS = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
KEYWORD_KINDS = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True, slots=True)
class Job:
    """A function and the options of its runs. Calling the job calls the function."""

    name: str
    function: Callable[..., Any] = field(repr=False)
    queue: str = "default"
    schedule: Schedule | None = None
    max_retries: int = 3
    retry_delay: timedelta = timedelta(seconds=60)
    backoff: Backoff = "fixed"
    longest_delay: timedelta = LONGEST_RETRY_DELAY
    jitter: bool = False
    retry_on: tuple[type[BaseException], ...] = ()
    dead_on: tuple[type[BaseException], ...] = ()
    expires: timedelta | None = None
    priority: int = 0
    overlap: Overlap = "allow"
    misfire: Misfire = "latest"
    misfire_grace: timedelta = timedelta(hours=6)
    misfire_cap: int = 1000
    soft_limit: timedelta = timedelta(minutes=25)
    hard_limit: timedelta = timedelta(minutes=30)
    ledger: bool = True
    isolation: Isolation | None = None
    subject: Subject | None = None
    keyed: Keyed | None = None
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        problems = [*option_problems(self), *function_problems(self)]
        if problems:
            raise DeclarationError(f"job {self.name!r}: " + "; ".join(problems))

    def __hash__(self) -> int:
        return hash(self.name)  # a run needs the hash several times, and to hash all fields would take long

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def description(self) -> str:
        """The first line of the docstring of the job's function."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def exclusive(self) -> bool:
        """Whether at most one run of each key may be running."""
        return self.overlap != "allow"

    def limit_names(self, args: Mapping[str, Any]) -> list[str]:
        """Return the names of the job's limits, in the order of ``limits``, with the values of a run's arguments filled
        in.

        ``args`` are JSON values. If one of them is missing, the run cannot start, and the name is returned as it is
        declared.
        """
        if not self.limits:
            return []
        values = {**defaults(self.function), **args}
        return [each.filled(values) if values.keys() >= {*each.arguments} else each.name for each in self.limits]

    def delay_after(self, failures: int) -> timedelta:
        """Return the wait before the next attempt, after ``failures`` failed attempts.

        The wait is exact unless the job has ``jitter``.
        """
        delay = self._full_delay_after(failures)
        return delay * random.uniform(LEAST_OF_DELAY, 1) if self.jitter else delay

    def _full_delay_after(self, failures: int) -> timedelta:
        if self.backoff == "fixed":
            return self.retry_delay
        factor: int = 1 << min(failures - 1, 30)
        if self.retry_delay > self.longest_delay // factor:
            return self.longest_delay
        return self.retry_delay * factor

    def may_retry(self, error: BaseException) -> bool:
        """Return whether ``retry_on`` and ``dead_on`` allow another attempt after ``error``."""
        return not isinstance(error, self.dead_on) and (not self.retry_on or isinstance(error, self.retry_on))


def job(
    name: str,
    *,
    queue: str = "default",
    schedule: Schedule | None = None,
    max_retries: int = 3,
    retry_delay: timedelta = timedelta(seconds=60),
    backoff: Backoff = "fixed",
    longest_delay: timedelta = LONGEST_RETRY_DELAY,
    jitter: bool = False,
    retry_on: tuple[type[BaseException], ...] = (),
    dead_on: tuple[type[BaseException], ...] = (),
    expires: timedelta | None = None,
    priority: int = 0,
    overlap: Overlap | None = None,
    misfire: Misfire | None = None,
    misfire_grace: timedelta = timedelta(hours=6),
    misfire_cap: int = 1000,
    soft_limit: timedelta = timedelta(minutes=25),
    hard_limit: timedelta = timedelta(minutes=30),
    ledger: bool = True,
    isolation: Isolation | None = None,
    subject: Subject | None = None,
    keyed: Keyed | None = None,
    limits: Sequence[Limit] = (),
) -> Callable[[Callable[..., Any]], Job]:
    """Declare a job. The plugin's hook ``register_jobs`` returns the job to Rota.

    Retries: ``max_retries`` counts the attempts after the first. ``backoff="exponential"`` doubles the delay after each
    failure, up to ``longest_delay``. ``jitter`` shortens each delay at random, by up to a half. With ``retry_on``, only
    these exceptions and PostgreSQL's own errors are retried. After one of the exceptions ``dead_on``, the run is dead
    at once.

    Slots and requests: ``overlap`` decides about a slot that comes due while another run of the same job and key is
    running. ``skip`` records the slot as skipped (the default with ``schedule`` or ``keyed``), ``wait`` starts it when
    the other run has ended, and ``allow`` starts it at once (the default otherwise). A request is never skipped:
    without ``allow``, the runs of one key start one after another. A request is missed if it has not started within
    ``expires`` after its due time. Runs with a higher ``priority``, 0 to 9, start first.

    Misfires: ``misfire`` decides about slots that were not started in time. ``latest`` runs the newest slot and records
    the others as missed, ``all`` runs all of them, and ``skip`` runs none. No slot is run later than ``misfire_grace``,
    and ``all`` runs only the newest ``misfire_cap`` slots.

    Execution: at ``soft_limit`` the function is interrupted with TimeLimitExceeded, and at ``hard_limit`` its process
    ends. ``isolation`` is the isolation level of ``run.session``; None means READ COMMITTED. If an attempt fails
    because of a conflict with other transactions (SQLSTATE 40001 or 40P01), it is repeated at once, up to three times.
    These repetitions are not counted as attempts. ``ledger=False`` puts the job on the fast lane: Redis alone delivers
    its messages, at least once, without slots, leases or history.

    ``subject=Subject(table, parameter)`` names the row that a run is about. If the row does not exist before the first
    attempt, the run ends as orphaned. Each of ``limits`` bounds, over all processes, how many runs are at work at the
    same time, or how many start within a time. A run that finds one of its limits full waits until there is room.

    ``keyed=Keyed(least, most, default)`` replaces ``schedule``: keys of the job may have schedules made at run time;
    see ``core.schedule``. Then ``misfire`` is ``skip`` by default if the usual interval is under 15 minutes.

    Raises DeclarationError, naming every option that is wrong.
    """

    def declare(function: Callable[..., Any]) -> Job:
        return Job(
            name=name,
            function=function,
            queue=queue,
            schedule=schedule,
            max_retries=max_retries,
            retry_delay=retry_delay,
            backoff=backoff,
            longest_delay=longest_delay,
            jitter=jitter,
            retry_on=retry_on,
            dead_on=dead_on,
            expires=expires,
            priority=priority,
            overlap=("allow" if schedule is None and keyed is None else "skip") if overlap is None else overlap,
            misfire=default_misfire(keyed) if misfire is None else misfire,
            misfire_grace=misfire_grace,
            misfire_cap=misfire_cap,
            soft_limit=soft_limit,
            hard_limit=hard_limit,
            ledger=ledger,
            isolation=isolation,
            subject=subject,
            keyed=keyed,
            limits=tuple(limits) if isinstance(limits, list) else limits,  # type: ignore[arg-type]
        )

    return declare


def default_misfire(keyed: object) -> Misfire:
    """Return the misfire policy of a job that declares none."""
    return "skip" if isinstance(keyed, Keyed) and not keyed_problems(keyed) and keyed.is_frequent else "latest"


def option_problems(job: Job) -> list[str]:
    """Return the problems with the options of ``job``. Each text names the option and its value."""
    checks = [
        _matches("name", job.name, JOB_NAME, "a letter, then letters, digits, - and _, all lower-case, at most 100"),
        _matches(
            "queue",
            job.queue,
            QUEUE_NAME,
            "lower-case letters, digits, - and _, at most 100, not beginning with a digit",
        ),
        _is_schedule(job.schedule),
        _is_count("max_retries", job.max_retries),
        _is_count("misfire_cap", job.misfire_cap, least=1, most=LARGEST_CAP),
        _is_span("retry_delay", job.retry_delay, least=timedelta(0)),
        _is_one_of("backoff", job.backoff, get_args(Backoff)),
        _is_span("longest_delay", job.longest_delay, least=timedelta(0)),
        _is_flag("jitter", job.jitter),
        _are_exceptions("retry_on", job.retry_on),
        _are_exceptions("dead_on", job.dead_on),
        _is_span("expires", job.expires, least=timedelta(milliseconds=1)) if job.expires is not None else "",
        _is_count("priority", job.priority, most=HIGHEST_PRIORITY),
        _is_one_of("overlap", job.overlap, get_args(Overlap)),
        _is_one_of("misfire", job.misfire, get_args(Misfire)),
        _is_span("misfire_grace", job.misfire_grace, least=timedelta(seconds=1)),
        _is_span("soft_limit", job.soft_limit, least=timedelta(milliseconds=1)),
        _is_span("hard_limit", job.hard_limit, least=timedelta(milliseconds=1)),
        _is_flag("ledger", job.ledger),
        _is_one_of("isolation", job.isolation or "READ COMMITTED", get_args(Isolation)),
        *keyed_problems(job.keyed),
    ]
    return [problem for problem in checks if problem] or combination_problems(job)


def combination_problems(job: Job) -> list[str]:
    """Return the contradictions between options."""
    problems = []
    if job.soft_limit > job.hard_limit:
        problems.append(f"soft_limit={job.soft_limit} must not be longer than hard_limit={job.hard_limit}")
    if job.schedule is not None and job.keyed is not None:
        problems.append(f"schedule={str(job.schedule)!r} and keyed contradict each other; drop one of them")
    if job.overlap == "skip" and job.schedule is None and job.keyed is None and job.ledger:
        problems.append("overlap='skip' would drop requests, and the job has no schedule; use 'wait' or 'allow'")
    if job.overlap == "wait" and job.misfire == "all":
        problems.append(
            "overlap='wait' keeps only the newest waiting slot, and misfire='all' runs all slots; change one of them"
        )
    if job.schedule is not None and job.subject is not None:
        problems.append("subject needs arguments, and a schedule passes none; drop one of them")
    if job.schedule is not None and not job.ledger:
        problems.append(
            f"schedule={str(job.schedule)!r} needs the ledger, and contradicts ledger=False; drop one of them"
        )
    own_overlap = ["overlap"] if job.schedule is None and job.keyed is None else []  # else it may be the default
    return [
        *problems,
        *retry_problems(job),
        *ledger_only(job, "retry_on", "dead_on", "expires", "priority", "subject", "limits", "keyed", *own_overlap),
    ]


def retry_problems(job: Job) -> list[str]:
    """Return the contradictions between the options for retries."""
    problems = []
    if job.longest_delay != LONGEST_RETRY_DELAY:
        if job.backoff == "fixed":
            problems.append(f"longest_delay={job.longest_delay} needs backoff='exponential'")
        elif job.longest_delay < job.retry_delay:
            problems.append(f"longest_delay={job.longest_delay} must not be shorter than retry_delay={job.retry_delay}")
    both = [each.__name__ for each in job.retry_on if each in job.dead_on]
    if both:
        problems.append(f"{', '.join(both)} must not be both in retry_on and in dead_on")
    return problems


def ledger_only(job: Job, *names: str) -> list[str]:
    """Return the problem if a job of the fast lane has options that need the ledger."""
    defaults = {each.name: each.default for each in fields(job)}
    given = [name for name in names if getattr(job, name) != defaults[name]]
    if job.ledger or not given:
        return []
    return [f"{', '.join(given)} must not be given with ledger=False: the fast lane has no ledger"]


def function_problems(job: Job) -> list[str]:
    """Return the problems with the function and its signature."""
    if not inspect.isroutine(job.function):
        return [f"function={job.function!r} must be a function"]
    if inspect.iscoroutinefunction(job.function) or inspect.isasyncgenfunction(job.function):
        return ["the function is async; declare it with def"]
    if inspect.isgeneratorfunction(job.function):
        return ["the function has a yield, so calling it would run nothing"]
    parameters = list(inspect.signature(job.function).parameters.values())
    if not parameters or parameters[0].name != "run" or parameters[0].kind not in POSITIONAL_KINDS:
        return ["the function's first parameter must be run"]
    problems = [problem for parameter in parameters[1:] for problem in parameter_problems(job, parameter)]
    names = [parameter.name for parameter in parameters[1:]]
    return [*problems, *subject_problems(job.subject, names), *limit_problems(job.limits, names)]


def parameter_problems(job: Job, parameter: inspect.Parameter) -> list[str]:
    """Return the problems with one parameter of the function other than ``run``."""
    name = parameter.name
    if parameter.kind not in KEYWORD_KINDS:
        return [f"parameter {name} cannot be passed by name"]
    if parameter.annotation is inspect.Parameter.empty:
        return [f"parameter {name} has no type annotation"]
    if job.schedule is not None and parameter.default is inspect.Parameter.empty:
        return [f"parameter {name} needs a default, since a schedule passes no arguments"]
    return []


def _matches(name: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return ""
    return f"{name}={value!r} must be {expected}"


def _is_schedule(value: object) -> str:
    if value is None or isinstance(value, Schedule):
        return ""
    return f"schedule={value!r} must be every(…) or cron(…)"


def _is_count(name: str, value: object, *, least: int = 0, most: float = math.inf) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return ""
    return f"{name}={value!r} must be a whole number, {least} {'or more' if most == math.inf else f'to {most}'}"


def _is_span(name: str, value: object, *, least: timedelta) -> str:
    if isinstance(value, timedelta) and least <= value <= LONGEST_SPAN:
        return ""
    return f"{name}={value!r} must be a timedelta of at least {least} and at most {LONGEST_SPAN.days} days"


def _is_one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if value in allowed:
        return ""
    return f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}"


def _are_exceptions(name: str, value: object) -> str:
    types = value if isinstance(value, tuple) else (None,)
    if all(isinstance(each, type) and issubclass(each, BaseException) for each in types):
        return ""
    return f"{name}={value!r} must be a tuple of exception types, such as (ConnectionError,)"


def is_priority(value: object) -> bool:
    """Return whether a run may have this priority."""
    return not _is_count("priority", value, most=HIGHEST_PRIORITY)


def _is_flag(name: str, value: object) -> str:
    return "" if isinstance(value, bool) else f"{name}={value!r} must be True or False"
