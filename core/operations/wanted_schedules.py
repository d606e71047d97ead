"""Compares the schedules of a job with the schedules that its plugin wants, and synchronises them.

The plugin's function and the comparison read the same snapshot. Therefore a key that an application adds or removes
meanwhile is not a difference, and is not changed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from psycopg2.errors import SerializationFailure
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core import database, key_schedules
from core.errors import PluginError, RotaError, ScheduleError, suggestion
from core.jobs.keyed import KeySchedule
from core.jobs.registry import Registry
from core.key_schedules import Difference, Synced
from core.ledger import audit
from core.ledger.audit import Actor
from core.operations import access

T = TypeVar("T")
#: A sync is tried this many times if other transactions change the schedules of the same keys meanwhile.
TRIES = 5
SNAPSHOT = {"isolation_level": "REPEATABLE READ"}


def sync(engine: Engine, registry: Registry, job: str, actor: Actor, *, most_removed: float = 0.5) -> Synced:
    """Give ``job`` the schedules that its plugin wants. Raises the errors of ``wanted`` and of ``sync_schedules``."""
    access.check(actor, "schedules sync")
    access.check_unlimited(actor, "schedules sync")

    def work(session: Session) -> Synced:
        done = key_schedules.give_all(
            session, job, wanted(session, registry, job), most_removed=most_removed, by=actor.name
        )
        counts = {"added": done.added, "changed": done.changed, "removed": done.removed}
        audit.record(session, actor, "schedules sync", job, **counts)
        return done

    for _ in range(TRIES - 1):
        try:
            return in_snapshot(engine, work)
        except DBAPIError as error:
            if not isinstance(error.orig, SerializationFailure):
                raise
    return in_snapshot(engine, work)


def sync_plugin(engine: Engine, registry: Registry, plugin: str, actor: Actor) -> dict[str, Synced]:
    """Sync the schedules of all jobs of ``plugin`` that have any. Raises the errors of ``sync``, and PluginError."""
    access.check(actor, "schedules sync")
    jobs = [job.name for job in registry.keyed() if registry.owners[job.name].name == plugin]
    if not jobs:
        raise PluginError(f"the plugin {plugin!r} is not loaded here, or none of its jobs has schedules for keys")
    return {job: sync(engine, registry, job, actor) for job in jobs}


def compare(engine: Engine, registry: Registry, job: str, *, most_removed: float = 0.5) -> Difference:
    """Return what ``sync`` would change, but change nothing. Raises the errors of ``sync``, except Forbidden."""

    def work(session: Session) -> Difference:
        found = difference(session, registry, job)
        key_schedules.refuse_removal(job, len(found.removed), found.there, found.wanted, most_removed)
        session.rollback()
        return found

    return in_snapshot(engine, work)


def in_snapshot(engine: Engine, work: Callable[[Session], T]) -> T:
    """Do ``work`` in a transaction that reads one snapshot."""
    with Session(engine) as session:
        session.connection(execution_options=SNAPSHOT)
        answer = work(session)
        session.commit()
        return answer


def difference(session: Session, registry: Registry, job: str) -> Difference:
    """Return how the schedules of ``job`` differ from those that its plugin wants. Raises the errors of ``wanted``."""
    read = wanted(session, registry, job)
    return key_schedules.difference(session, key_schedules.keyed_job(job), read)


def differences(session: Session, registry: Registry) -> Mapping[str, Difference | RotaError]:
    """Compare all jobs for which a plugin has a function that reads the wanted schedules.

    If the function for a job raises an error, the value of the job is this error.
    """
    found: dict[str, Difference | RotaError] = {}
    for job in registry.wanted_schedules:
        apart = session.begin_nested()
        try:
            found[job] = difference(session, registry, job)
        except RotaError as error:
            found[job] = error
        finally:
            apart.rollback()
    return found


def wanted(session: Session, registry: Registry, job: str) -> Iterator[KeySchedule]:
    """Return the schedules that the plugin of ``job`` wants. The plugin's function is called when the caller iterates.

    Raises UnknownJob. Raises ScheduleError if the plugin has no such function. The iteration raises PluginError if the
    function raises.
    """
    owner = registry.owners[registry.job(job).name].name
    read = registry.wanted_schedules.get(job)
    if read is None:
        hint = suggestion(job, registry.wanted_schedules)
        raise ScheduleError(f"plugin {owner!r} has no function for {job!r} in its hook register_schedules{hint}")

    def reading() -> Iterator[KeySchedule]:
        try:
            yield from read(session)
        except Exception as error:
            said = database.brief(error) if isinstance(error, DBAPIError) else str(error)
            raise PluginError(
                f"the function of plugin {owner!r} that reads the wanted schedules of {job!r} raised "
                f"{type(error).__name__}: {said}; nothing was changed"
            ) from error

    return reading()
