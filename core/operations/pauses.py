"""Lists pauses, and begins and ends the pause of a scope's jobs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from core.errors import BadTime, PauseError
from core.jobs.registry import EVERYTHING, Registry
from core.ledger import audit, history, pauses
from core.ledger.audit import Actor
from core.operations import access, scopes, times
from core.operations.json_shape import Instant, Shape
from core.operations.wording import local


class Pause(Shape):
    """A pause of the jobs of a scope."""

    scope: str
    reason: str | None
    paused_by: str
    paused_at: Instant
    until: Instant | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A new pause, and the jobs of its scope that it does not cover."""

    pause: Pause
    on_fast_lane: list[str]


def active(connection: Connection) -> list[Pause]:
    """Return the active pauses, the oldest first."""
    return [Pause.model_validate(pause) for pause in pauses.active(connection)]


def of_job(connection: Connection, registry: Registry, job: str) -> list[pauses.Pause]:
    """Return the active pauses that cover ``job``."""
    return pauses.of_scopes(pauses.active(connection), scopes.of_job(registry, job))


def in_words(pause: pauses.Pause, at: Callable[[datetime], str] = local) -> str:
    """Return a pause in words, such as ``paused by ann since … until …: the bank is down``."""
    what = "" if pause.scope.startswith("job:") else f" ({pause.scope})"
    until = f" until {at(pause.until)}" if pause.until else ""
    reason = f": {pause.reason}" if pause.reason else ""
    return f"paused{what} by {pause.paused_by} since {at(pause.paused_at)}{until}{reason}"


def begin(
    connection: Connection,
    registry: Registry,
    scope: str,
    actor: Actor,
    *,
    reason: str | None = None,
    lasting: timedelta | None = None,
    until: str | None = None,
) -> Begun:
    """Pause ``scope`` when the caller's transaction commits, for the span ``lasting`` or ``until`` a local time.

    Raises Forbidden, UnknownJob, PauseError or BadTime.
    """
    access.check(actor, "pause")
    scopes.refuse_unknown(connection, registry, scope)
    access.check_scope(connection, actor, scope)
    refuse_fast_lane(registry, scope)
    end_at = end_of(history.now(connection), lasting, until)
    begun = pauses.begin(connection, scope, by=actor.name, reason=reason, until=end_at)
    audit.record(connection, actor, "pause", scope, until=end_at, reason=reason)
    return Begun(Pause.model_validate(begun), scopes.on_fast_lane(registry, scope))


def end_of(now: datetime, lasting: timedelta | None, until: str | None) -> datetime | None:
    """Return the end of the pause, or None if it has no end. Raises BadTime."""
    if until is not None:
        return times.future(until, now, "until")
    try:
        return now + lasting if lasting is not None else None
    except OverflowError:
        raise BadTime("the pause would end after the last date that there is", "for") from None


def refuse_fast_lane(registry: Registry, scope: str) -> None:
    """Raise PauseError for a job of the fast lane, which cannot be paused."""
    job = registry.jobs.get(scope.removeprefix("job:")) if scope.startswith("job:") else None
    if job is not None and not job.ledger:
        raise PauseError(
            f"job {job.name!r} is on the fast lane (ledger=False): it does not use the ledger, so it cannot be "
            "paused; stop the workers of its queue instead"
        )


def end(connection: Connection, registry: Registry, scope: str, actor: Actor) -> list[pauses.Pause]:
    """End the pause of ``scope`` when the caller's transaction commits. Return the pauses that still cover the scope.

    Raises Forbidden. Raises PauseError if ``scope`` itself is not paused; the message names a pause that covers the
    scope, if there is one.
    """
    access.check(actor, "resume")
    access.check_scope(connection, actor, scope)
    before = pauses.active(connection)
    ended = pauses.end(connection, scope)
    if ended is None:
        raise PauseError(not_paused(registry, scope, before))
    audit.record(connection, actor, "resume", scope, paused_by=ended.paused_by, paused_at=ended.paused_at)
    return holding(registry, scope, pauses.active(connection))


def not_paused(registry: Registry, scope: str, found: list[pauses.Pause]) -> str:
    """Return the message for a ``scope`` that is not paused. The message names the scopes that are paused."""
    for wider in holding(registry, scope, found):
        how = scopes.as_option(wider.scope)
        return (
            f"{scope} itself is not paused; the pause of {wider.scope} covers it: `rota resume {how}` ends that pause"
        )
    if found and scope == EVERYTHING:
        return f"everything is not paused; the active pauses are of {', '.join(pause.scope for pause in found)}"
    return f"{scope} is not paused; `rota pauses` lists the pauses"


def holding(registry: Registry, scope: str, found: list[pauses.Pause]) -> list[pauses.Pause]:
    """Return the pauses that cover the job named by ``scope``.

    If ``scope`` names no job, return the pause of everything.
    """
    job = scope.removeprefix("job:")
    wider = registry.scopes.get(job, (EVERYTHING,)) if scope.startswith("job:") else (EVERYTHING,)
    return [pause for pause in pauses.of_scopes(found, wider) if pause.scope != scope]
