"""Checks what a person may do and see. Every operation that changes something calls ``check`` first.

Each action needs a role. A person may also be limited to some plugins, to some queues, or to both. Such a person may
act only on jobs that all of these limits cover, and may not do an action that concerns more than single jobs.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from core.errors import Forbidden
from core.jobs.registry import EVERYTHING, scopes
from core.ledger import releases
from core.ledger.audit import Action, Actor, Role
from core.plugins import loading


@dataclass(frozen=True, slots=True)
class View:
    """The jobs that a person may see, and whether they may see arguments."""

    #: The jobs that the person may see; None for all jobs.
    jobs: Collection[str] | None = None
    #: Whether the person may see the arguments of runs.
    has_arguments: bool = True

    def shows(self, job: str) -> bool:
        """Return whether the person may see ``job``."""
        return self.jobs is None or job in self.jobs


#: The view of a person who may see everything.
WHOLE = View()

RANKS: dict[Role, int] = {"viewer": 0, "operator": 1, "admin": 2}
#: The lowest role that may do each action.
NEEDS: dict[Action, Role] = {
    "run": "operator",
    "retry": "operator",
    "drop": "operator",
    "cancel": "operator",
    "pause": "operator",
    "resume": "operator",
    "orphans adopt": "operator",
    "orphans clean": "operator",
    "operations cancel": "operator",
    "schedules add": "operator",
    "schedules remove": "operator",
    "schedules pause": "operator",
    "schedules resume": "operator",
    "schedules sync": "admin",
    "schedules clean": "admin",
    "db upgrade": "admin",
    "db drop-plugin": "admin",
    "tokens create": "admin",
    "tokens revoke": "admin",
    "tokens link": "admin",
    "sessions end": "admin",
    "call": "operator",
}


def check(actor: Actor, action: Action) -> None:
    """Raise Forbidden unless the role of ``actor`` allows ``action``."""
    require(actor, NEEDS[action], f"{action!r}")


def allows(actor: Actor, action: Action) -> bool:
    """Return whether the role of ``actor`` allows ``action``. Limits of ``actor`` are not looked at."""
    return RANKS[actor.role] >= RANKS[NEEDS[action]]


def require(actor: Actor, role: Role, what: str) -> None:
    """Raise Forbidden unless ``actor`` has ``role`` or a higher role. The message names the action ``what``."""
    if RANKS[actor.role] < RANKS[role]:
        raise Forbidden(f"{actor.name} has the role {actor.role}; {what} needs the role {role}")


def is_limited(actor: Actor) -> bool:
    """Return whether ``actor`` may see only some jobs, and act only on these."""
    return actor.plugins is not None or actor.queues is not None


def check_unlimited(actor: Actor, what: str) -> None:
    """Raise Forbidden if ``actor`` has limits. The action ``what`` concerns more than the jobs that limits cover."""
    if is_limited(actor):
        raise Forbidden(f"{actor.name} is limited to {limits_in_words(actor)}; {what} concerns more than these")


def check_jobs(connection: Connection, actor: Actor, jobs: Iterable[str]) -> None:
    """Raise Forbidden unless the limits of ``actor`` cover all ``jobs``. The message names the other jobs."""
    seen = visible(connection, actor)
    beyond = [] if seen is None else sorted(set(jobs) - set(seen))
    if beyond:
        raise Forbidden(f"{actor.name} is limited to {limits_in_words(actor)}, which do not have {', '.join(beyond)}")


def check_scope(connection: Connection, actor: Actor, scope: str) -> None:
    """Raise Forbidden unless the limits of ``actor`` cover all jobs that ``scope`` can have."""
    if not is_limited(actor):
        return
    kind, _, name = scope.partition(":")
    if kind == "job":
        check_jobs(connection, actor, [name])
    elif kind == "plugin":
        check_plugin(actor, name)
    elif kind == "queue" and actor.plugins is None and name in (actor.queues or ()):
        return
    else:
        check_unlimited(actor, "everything" if scope == EVERYTHING else f"the {kind} {name}")


def check_plugin(actor: Actor, plugin: str) -> None:
    """Raise Forbidden unless the limits of ``actor`` cover all that ``plugin`` has."""
    if actor.queues is not None or plugin not in (actor.plugins or ()):
        check_unlimited(actor, f"the plugin {plugin}")


def visible(connection: Connection, actor: Actor) -> Collection[str] | None:
    """Return the jobs that ``actor`` may see, or None for all jobs. The jobs of earlier releases are included."""
    if not is_limited(actor):
        return None
    had = {place.job: scopes(place.job, place.queue, place.plugin) for place in releases.places(connection)}
    return {job for job, found in {**had, **loading.current().scopes}.items() if covers(actor, found)}


def view(connection: Connection, actor: Actor) -> View:
    """Return what ``actor`` may see."""
    return View(visible(connection, actor), actor.sees_arguments)


def covers(actor: Actor, found: Collection[str]) -> bool:
    """Return whether the limits of ``actor`` cover a job with these scopes."""
    plugins, queues = actor.plugins, actor.queues
    is_plugin = plugins is None or any(f"plugin:{name}" in found for name in plugins)
    return is_plugin and (queues is None or any(f"queue:{name}" in found for name in queues))


def limits_in_words(actor: Actor) -> str:
    """Return the limits of ``actor``, such as ``the plugins billing and the queues mail``."""
    parts = [("plugins", actor.plugins), ("queues", actor.queues)]
    return " and ".join(f"the {kind} {', '.join(sorted(names))}" for kind, names in parts if names is not None)
