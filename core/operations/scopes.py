"""The scope of a pause: a job, a queue, a plugin, or everything."""

from collections.abc import Collection

from sqlalchemy import Connection

from core.errors import PauseError, UnknownJob, suggestion
from core.jobs.registry import EVERYTHING, Registry
from core.ledger import releases


def of_job(registry: Registry, job: str) -> Collection[str]:
    """Return the scopes of the pauses that would pause ``job``.

    If the job is not loaded, only some of its scopes are known.
    """
    return registry.scopes.get(job, (EVERYTHING, f"job:{job}"))


def as_option(scope: str) -> str:
    """Return the option of the command line that names ``scope``."""
    kind, _, name = scope.partition(":")
    return {"job": name, EVERYTHING: "--everything"}.get(kind, f"--{kind} {name}")


def refuse_unknown(connection: Connection, registry: Registry, scope: str) -> None:
    """Raise UnknownJob or PauseError, with the nearest name, unless this process or a live process has the scope."""
    known = set().union(*registry.scopes.values(), *releases.scopes_of_jobs(connection).values())
    if scope in {*known, EVERYTHING}:
        return
    kind, _, name = scope.partition(":")
    nearest = suggestion(name, (other.partition(":")[2] for other in known if other.startswith(f"{kind}:")))
    raise (UnknownJob if kind == "job" else PauseError)(f"unknown {kind} {name!r}{nearest or '; see `rota jobs`'}")


def on_fast_lane(registry: Registry, scope: str) -> list[str]:
    """Return the jobs of ``scope`` that cannot be paused, since they are on the fast lane."""
    return [job.name for job in registry if not job.ledger and scope in registry.scopes[job.name]]
