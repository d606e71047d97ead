"""The checks of ``rota check``. Each function makes one kind of check, within seconds."""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from core import database, settings
from core.errors import SettingsError
from core.jobs.limit import contradictions as contradictions_of
from core.jobs.registry import Registry, words_on_grace
from core.ledger import history, identity, limit_use, orphans, pauses, releases, transactions
from core.ledger.history import Process
from core.ledger.pauses import Pause
from core.operations import postgres_fitness, redis_fitness, standings, subjects
from core.operations.checks import Check, Outcome, check
from core.operations.json_shape import Shape
from core.operations.limits import numbers_in_words
from core.operations.pauses import in_words
from core.plugins import loading
from core.plugins import unread_settings as unread
from core.schema import grants, upgrade, whereabouts
from core.schema.grants import Lack, Purpose
from core.schema.upgrade import History
from core.settings import Settings

#: PostgreSQL 13 is the oldest version that the ledger is tested on.
OLDEST_POSTGRESQL = 130000

#: The kind of a worker process that makes no progress.
STUCK = "stuck"


class Report(Shape):
    """All checks, and whether all of them are right."""

    ok: bool
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The environment variables, the ledger and the advice that the checks use."""

    #: The environment variables from which settings are read, and the name of their source.
    environment: Mapping[str, str]
    source: str
    #: Opens an engine on the ledger of these settings. The engine is closed on exit.
    ledger: Callable[[Settings], AbstractContextManager[Engine]]
    #: The advice if a server cannot be reached.
    advice: str


def everything(
    registry: Registry, around: Surroundings, *, purpose: Purpose = "working", live: bool, here: str | None
) -> Iterator[Check]:
    """Make all checks, one after the other.

    With ``live``, missing processes, stuck processes, idle transactions and overdue slots are wrong. ``here`` is a kind
    of process, such as "worker": a process of that kind must be alive on this host. If ``purpose`` is "looking", checks
    that only workers need are never wrong.
    """
    yield from needed_for_working(installed(registry), purpose)
    try:
        configured = settings.load(around.environment)
    except SettingsError as error:
        yield check("settings", "wrong", str(error))
        return
    yield from needed_for_working(contradictions(registry, configured), purpose)
    yield from contradicting_limits(registry)
    yield check("settings", "ok", around.source)
    yield from unread_settings(registry, around.environment)
    yield from ledger(registry, configured, around, purpose=purpose, live=live, here=here)
    yield from needed_for_working([redis_fitness.reachable(configured, around.advice)], purpose)


def needed_for_working(found: Iterable[Check], purpose: Purpose) -> Iterator[Check]:
    """Yield the given checks. If ``purpose`` is "looking", yield a wrong check as mere information."""
    for answer in found:
        is_told = answer.outcome == "wrong" and purpose == "looking"
        yield answer.model_copy(update={"outcome": "info"}) if is_told else answer


def report(found: list[Check]) -> Report:
    """Return a report of these checks."""
    return Report(ok=all(answer.outcome != "wrong" for answer in found), checks=found)


def installed(registry: Registry) -> Iterator[Check]:
    """Check that the plugins are loaded."""
    for plugin in registry.plugins:
        if plugin.is_disabled:
            yield check(f"plugin {plugin.name}", "info", "disabled by ROTA_DISABLED_PLUGINS; it has no jobs")
        elif plugin.error:
            advice = f"mend or uninstall {plugin.distribution or plugin.name}; until then, its jobs do not run"
            yield check(f"plugin {plugin.name}", "wrong", plugin.error, advice)
        else:
            yield check(f"plugin {plugin.name}", "ok", "1 job" if len(plugin.jobs) == 1 else f"{len(plugin.jobs)} jobs")


def unread_settings(registry: Registry, environment: Mapping[str, str]) -> Iterator[Check]:
    """List environment variables that nothing reads, such as settings of an uninstalled plugin. They do no harm."""
    for left in unread.variables(environment, registry):
        yield check(f"setting {left.variable}", "info", left.why, "unset it, or install the plugin that it is for")


def contradictions(registry: Registry, configured: Settings) -> Iterator[Check]:
    """Check that the jobs' options do not contradict the settings."""
    for job in registry.outliving(timedelta(days=configured.retention_days)):
        advice = (
            "shorten the grace, or keep runs for longer; else a slot may run after the records of its time were deleted"
        )
        yield check(f"job {job.name}", "wrong", words_on_grace(job, configured.retention_days), advice)


def contradicting_limits(registry: Registry) -> Iterator[Check]:
    """Name the limits that two jobs declare with different numbers."""
    declared = ((job.name, limit.name, limit.numbers) for job in registry for limit in job.limits)
    for name, jobs in contradictions_of(declared).items():
        said = f"the jobs {', '.join(jobs)} declare different numbers; the smaller numbers apply"
        yield check(f"limit {name}", "info", said, "declare the same numbers")


def limits_of_releases(connection: Connection) -> Iterator[Check]:
    """Name the limits for which live releases have different numbers."""
    for name, numbers in limit_use.contradictory(connection).items():
        sizes = " and ".join(map(numbers_in_words, numbers))
        said = f"live releases have different numbers, {sizes}; the smaller numbers apply"
        yield check(f"limit {name}", "info", said, "this ends when the processes of the previous release have ended")


def ledger(
    registry: Registry,
    configured: Settings,
    around: Surroundings,
    *,
    purpose: Purpose,
    live: bool,
    here: str | None,
) -> Iterator[Check]:
    """Check PostgreSQL, its tables, and the processes and slots that the ledger records."""
    try:
        with around.ledger(configured) as engine, engine.connect() as connection:
            yield version(connection)
            yield from needed_for_working(postgres_fitness.fitness(connection, engine), purpose)
            if unseen := whereabouts.hidden(connection):
                yield check("schema", "wrong", unseen.found, unseen.remedy)
                return
            yield from rights(connection, registry, purpose)
            histories = upgrade.status(engine, registry)
            yield from migrations(histories, purpose)
            if this := identity.of(connection):
                yield from needed_for_working(redis_fitness.owned(configured, this), purpose)
            if all(found.is_current for found in histories if found.plugin == loading.CORE):
                needs_scheduler = configured.mode != "local"
                yield from processes(connection, registry, live=live, here=here, needs_scheduler=needs_scheduler)
                yield from needed_for_working(subjects.missing(connection, registry), purpose)
                yield from absent_jobs(connection)
                yield from limits_of_releases(connection)
                yield from idle_transactions(connection, live=live)
                active = pauses.active(connection)
                yield from (check(f"pause of {pause.scope}", "info", in_words(pause)) for pause in active)
                yield from slots(connection, registry, active, live=live)
    except DBAPIError as error:
        url = configured.database_url.get_secret_value()
        if problem := postgres_fitness.hopeless(error) or postgres_fitness.statement_pooling(error, url):
            yield problem
            return
        advice = "" if database.remedy(error) else around.advice
        rights_needed = database.RIGHTS_TO_LOOK if purpose == "looking" else database.RIGHTS
        yield check("PostgreSQL", "wrong", database.brief(error, rights_needed), advice)


def version(connection: Connection) -> Check:
    """Check that PostgreSQL is new enough."""
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    words = connection.exec_driver_sql("SHOW server_version").scalar_one()
    if number < OLDEST_POSTGRESQL:
        return check("PostgreSQL", "wrong", f"version {words}", "use PostgreSQL 13 or newer")
    return check("PostgreSQL", "ok", f"version {words}")


def rights(connection: Connection, registry: Registry, purpose: Purpose) -> Iterator[Check]:
    """List the rights that the role lacks on Rota's tables and sequences."""
    if purpose == "looking":
        yield from lacking(grants.lacking(connection, registry, "looking"), "looking")
    yield from needed_for_working(lacking(grants.lacking(connection, registry), "working"), purpose)


def lacking(found: Iterable[Lack], purpose: Purpose) -> Iterator[Check]:
    """Yield a check for each right that the role lacks and that ``purpose`` needs."""
    for lack in found:
        what = f"rights on {lack.kind.lower()}s of {lack.owner}"
        yield check(what, "wrong", f"{lack.role} lacks {lack.rights} for {purpose}", lack.remedy)


def migrations(histories: Iterable[History], purpose: Purpose) -> Iterator[Check]:
    """Check that the tables of all plugins are current. For looking, only the tables of the core must be current."""
    for found in histories:
        behind: Outcome = "wrong" if purpose == "working" or found.plugin == loading.CORE else "info"
        at = f"at {found.current or 'nothing'}, newest {found.head}"
        if found.is_current:
            yield check(f"tables of {found.plugin}", "ok", at)
        else:
            yield check(f"tables of {found.plugin}", behind, at, "run `rota db upgrade`")


def processes(
    connection: Connection, registry: Registry, *, live: bool, here: str | None, needs_scheduler: bool = True
) -> Iterator[Check]:
    """Check which processes are alive.

    Missing processes are wrong only with ``live``, since before the first start no process has to be alive.
    """
    alive = history.alive(connection)
    missing: Outcome = "wrong" if live else "info"
    for queue in sorted({job.queue for job in registry}):
        count = sum(history.serves([process], queue) for process in alive)
        advice = "" if count else f"start one: rota worker -Q {queue}"
        yield check(f"workers on {queue}", "ok" if count else missing, f"{count} alive", advice)
    for process in alive:
        if process.kind == STUCK:
            said = f"{process.name} makes no progress: one of its threads stands still outside of any job"
            advice = "see the event process.stuck in its log; the process will end, and its runs will be recovered"
            yield check("stuck process", missing, said, advice)
    if needs_scheduler:
        schedulers = sum(process.kind == "scheduler" for process in alive)
        advice = "" if schedulers else "start one: periodiq core.main; until then, slots start up to 2 s late"
        yield check("scheduler", "ok" if schedulers else missing, f"{schedulers} alive", advice)
    dispatching = history.is_dispatching(connection)
    advice = "" if dispatching else "start a worker; every worker has a dispatcher"
    yield check("dispatcher", "ok" if dispatching else missing, "leads" if dispatching else "none", advice)
    if here:
        yield on_this_host(alive, here)


def idle_transactions(connection: Connection, *, live: bool) -> Iterator[Check]:
    """Name the transactions of runs that wait for their job, and the runs that they may belong to."""
    for idle in transactions.of_workers(connection):
        run = f"run {idle.runs[0]}" if len(idle.runs) == 1 else f"one of the runs {', '.join(idle.runs)}"
        said = f"{run}, on {idle.process}: idle for {idle.seconds:.0f} s (PostgreSQL's process {idle.pid})"
        advice = "it holds locks; let the job call run.checkpoint() before it waits"
        yield check("idle transaction", "wrong" if live else "info", said, advice)


def absent_jobs(connection: Connection) -> Iterator[Check]:
    """Name the jobs that runs wait for, although no live process has these jobs. Without live processes, name none."""
    fleet = releases.fleet(connection)
    absent = {job for job in orphans.awaited(connection) if not fleet.knows(job)} if fleet.queues_of else set()
    had = releases.last_had(connection, absent) if absent else {}
    for job in sorted(absent):
        if job in had:
            said = f"runs wait, but no live process has this job of {had[job].plugin}: they are orphaned after a grace"
            yield check(f"runs of {job}", "info", said, "start a worker that has its plugin, or see `rota diff`")
        else:
            said = "runs wait; no release that ran here has had the job yet"
            yield check(f"runs of {job}", "info", said, f"deploy its plugin, or give them up: rota drop --job {job}")


def slots(connection: Connection, registry: Registry, active: list[Pause], *, live: bool) -> Iterator[Check]:
    """Check that no job with a schedule is overdue. This reads only the ledger."""
    wrong = 0
    for found in standings.late(connection, registry, active):
        wrong += 1
        advice = f"rota runs --job {found.job}; rota why {found.job} --at TIME"
        yield check(f"slots of {found.job}", "wrong" if live else "info", found.said, advice)
    if not wrong:
        yield check("slots", "ok", f"{len(list(registry.scheduled()))} jobs have schedules, and none is overdue")


def on_this_host(alive: list[Process], kind: str) -> Check:
    """Check that a process of the kind ``kind`` is alive on this host, for the health check of a container."""
    names = [process.name for process in alive if process.kind == kind and is_here(process)]
    if names:
        return check(f"{kind} here", "ok", ", ".join(names))
    return check(f"{kind} here", "wrong", f"none on {socket.gethostname()}", f"see the log of the {kind}")


def is_here(process: Process) -> bool:
    """Return whether a process is on this host."""
    return process.name.rpartition(":")[0] == socket.gethostname()
