"""What ``rota check`` looks at, one function per question; each answers within seconds."""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from core import database, settings
from core.errors import SettingsError
from core.jobs.registry import Registry, words_on_grace
from core.ledger import history, identity, overdue, pauses
from core.ledger.history import Process
from core.ledger.pauses import Pause
from core.operations import postgres_fitness, redis_fitness, standings
from core.operations.checks import Check, Outcome, check
from core.operations.json_shape import Shape
from core.operations.pauses import in_words
from core.plugins import loading
from core.plugins import unread_settings as unread
from core.schema import grants, upgrade, whereabouts
from core.schema.grants import Lack, Purpose
from core.schema.upgrade import History
from core.settings import Settings

#: PostgreSQL 13 is the oldest that the ledger is tested on.
OLDEST_POSTGRESQL = 130000

#: The kind of a worker that makes no progress.
STUCK = "stuck"


class Report(Shape):
    """Every answer, and whether none is wrong."""

    ok: bool
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The environment, ledger and advice that the checks use."""

    #: The variables that settings are read from, and where they are from, in words.
    environment: Mapping[str, str]
    source: str
    #: An engine on the ledger of these settings, closed afterwards.
    ledger: Callable[[Settings], AbstractContextManager[Engine]]
    #: Where to look when a server cannot be reached.
    advice: str


def everything(
    registry: Registry, around: Surroundings, *, purpose: Purpose = "working", live: bool, here: str | None
) -> Iterator[Check]:
    """All checks, as they are done. ``live`` and ``here`` make the processes matter; see ``rota check``.

    For looking, what only workers need is told, and is not wrong.
    """
    yield from needed_for_working(installed(registry), purpose)
    try:
        configured = settings.load(around.environment)
    except SettingsError as error:
        yield check("settings", "wrong", str(error))
        return
    yield from needed_for_working(contradictions(registry, configured), purpose)
    yield check("settings", "ok", around.source)
    yield from unread_settings(registry, around.environment)
    yield from ledger(registry, configured, around, purpose=purpose, live=live, here=here)
    yield from needed_for_working([redis_fitness.carrier(configured, around.advice)], purpose)


def needed_for_working(found: Iterable[Check], purpose: Purpose) -> Iterator[Check]:
    """Answers of which none is wrong for looking."""
    for answer in found:
        is_told = answer.outcome == "wrong" and purpose == "looking"
        yield answer.model_copy(update={"outcome": "info"}) if is_told else answer


def report(found: list[Check]) -> Report:
    """The answers together."""
    return Report(ok=all(answer.outcome != "wrong" for answer in found), checks=found)


def installed(registry: Registry) -> Iterator[Check]:
    """Whether the plugins are loaded."""
    for plugin in registry.plugins:
        if plugin.is_disabled:
            yield check(f"plugin {plugin.name}", "info", "disabled by ROTA_DISABLED_PLUGINS; it has no jobs")
        elif plugin.error:
            advice = f"mend or uninstall {plugin.distribution or plugin.name}; its jobs do not run meanwhile"
            yield check(f"plugin {plugin.name}", "wrong", plugin.error, advice)
        else:
            yield check(f"plugin {plugin.name}", "ok", "1 job" if len(plugin.jobs) == 1 else f"{len(plugin.jobs)} jobs")


def unread_settings(registry: Registry, environment: Mapping[str, str]) -> Iterator[Check]:
    """Which variables nobody reads, such as those of a plugin that was uninstalled; they do no harm."""
    for left in unread.variables(environment, registry):
        yield check(f"setting {left.variable}", "info", left.why, "unset it, or install the plugin that it is for")


def contradictions(registry: Registry, configured: Settings) -> Iterator[Check]:
    """Whether what jobs say goes together with the settings."""
    for job in registry.outliving(timedelta(days=configured.retention_days)):
        advice = "shorten the one or lengthen the other: what became of such a slot may be deleted before it is run"
        yield check(f"job {job.name}", "wrong", words_on_grace(job, configured.retention_days), advice)


def ledger(
    registry: Registry,
    configured: Settings,
    around: Surroundings,
    *,
    purpose: Purpose,
    live: bool,
    here: str | None,
) -> Iterator[Check]:
    """Whether PostgreSQL is there, new enough and migrated, and who is alive according to it."""
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
                yield from needed_for_working(redis_fitness.carried(configured, this), purpose)
            if all(found.is_current for found in histories if found.plugin == loading.CORE):
                needs_scheduler = configured.mode != "local"
                yield from processes(connection, registry, live=live, here=here, needs_scheduler=needs_scheduler)
                active = pauses.active(connection)
                yield from (check(f"pause of {pause.scope}", "info", in_words(pause)) for pause in active)
                yield from slots(connection, registry, active, live=live)
    except DBAPIError as error:
        if hopeless := postgres_fitness.hopeless(error):
            yield hopeless
            return
        advice = "" if database.remedy(error) else around.advice
        rights_needed = database.RIGHTS_TO_LOOK if purpose == "looking" else database.RIGHTS
        yield check("PostgreSQL", "wrong", database.brief(error, rights_needed), advice)


def version(connection: Connection) -> Check:
    """Whether PostgreSQL is new enough."""
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    words = connection.exec_driver_sql("SHOW server_version").scalar_one()
    if number < OLDEST_POSTGRESQL:
        return check("PostgreSQL", "wrong", f"version {words}", "use PostgreSQL 13 or newer")
    return check("PostgreSQL", "ok", f"version {words}")


def rights(connection: Connection, registry: Registry, purpose: Purpose) -> Iterator[Check]:
    """Which of our tables and sequences the role may not use, and for what."""
    if purpose == "looking":
        yield from lacking(grants.lacking(connection, registry, "looking"), "looking")
    yield from needed_for_working(lacking(grants.lacking(connection, registry), "working"), purpose)


def lacking(found: Iterable[Lack], purpose: Purpose) -> Iterator[Check]:
    """What a role lacks for ``purpose``."""
    for lack in found:
        what = f"rights on {lack.kind.lower()}s of {lack.owner}"
        yield check(what, "wrong", f"{lack.role} lacks {lack.rights} for {purpose}", lack.remedy)


def migrations(histories: Iterable[History], purpose: Purpose) -> Iterator[Check]:
    """Whether every plugin's tables are there; one looks at the core's alone."""
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
    """Who is alive. Wrong only if asked for: nobody needs to be, before the first start."""
    alive = history.alive(connection)
    missing: Outcome = "wrong" if live else "info"
    for queue in sorted({job.queue for job in registry}):
        count = sum(history.serves([process], queue) for process in alive)
        advice = "" if count else f"start one: rota worker -Q {queue}"
        yield check(f"workers on {queue}", "ok" if count else missing, f"{count} alive", advice)
    for process in alive:
        if process.kind == STUCK:
            said = f"{process.name} makes no progress: a thread of it stands still outside of any job"
            advice = "see process.stuck in its log; it ends, and its runs are recovered"
            yield check("stuck process", missing, said, advice)
    if needs_scheduler:
        schedulers = sum(process.kind == "scheduler" for process in alive)
        advice = "" if schedulers else "start one: periodiq core.main; until then slots come up to 2 s late"
        yield check("scheduler", "ok" if schedulers else missing, f"{schedulers} alive", advice)
    dispatching = history.is_dispatching(connection)
    advice = "" if dispatching else "every worker brings one; start a worker"
    yield check("dispatcher", "ok" if dispatching else missing, "leads" if dispatching else "none", advice)
    if here:
        yield on_this_host(alive, here)


def slots(connection: Connection, registry: Registry, active: list[Pause], *, live: bool) -> Iterator[Check]:
    """The dead man's switch: whether each job with a schedule has had a success of late. Asks no process."""
    scheduled = {job.name: job for job in registry.scheduled()}
    now, wrong = history.now(connection), 0
    held = pauses.held(active, registry.scopes)
    for found in overdue.look(connection, scheduled.values()):
        unrecorded = standings.unrecorded(connection, scheduled[found.job], registry.scopes[found.job], found, now)
        if found.overdue + unrecorded >= overdue.WRONG_FROM and found.job not in held:
            wrong += 1
            said = standings.in_words(found, unrecorded, scheduled[found.job])
            advice = f"rota runs --job {found.job}; rota why {found.job} --at TIME"
            yield check(f"slots of {found.job}", "wrong" if live else "info", said, advice)
    if not wrong:
        yield check("slots", "ok", f"{len(scheduled)} jobs have schedules, and none is overdue")


def on_this_host(alive: list[Process], kind: str) -> Check:
    """Whether a process of that kind is alive on this host, which is what a container's health check asks."""
    names = [process.name for process in alive if process.kind == kind and is_here(process)]
    if names:
        return check(f"{kind} here", "ok", ", ".join(names))
    return check(f"{kind} here", "wrong", f"none on {socket.gethostname()}", "see its log")


def is_here(process: Process) -> bool:
    """Whether a process is on this host."""
    return process.name.rpartition(":")[0] == socket.gethostname()
