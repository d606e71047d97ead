"""Releases: the jobs that each process has. They tell a process which jobs other processes have.

During a deploy, processes of two releases are alive. Hosts may also have different plugins. So each process names its
release when it registers, and the jobs of the fleet are the jobs of all live processes together. A process that names
no release is of a version without releases. The jobs of such a process are unknown, so no run is orphaned while it is
alive.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from core.jobs import arguments
from core.jobs.job import LONGEST_RETRY_DELAY, Job
from core.jobs.keyed import Keyed
from core.jobs.limit import smallest
from core.jobs.registry import Registry, scopes
from core.jobs.secrets import secret_names

#: Whether a live worker that serves the queue {queue} may have {job} in a form that is not among {refused}. A process
#: without a release may have any job. A release that has the job without a form is of a version that recorded no forms.
MAY_FIT = """EXISTS (
    SELECT 1 FROM rota_processes AS other LEFT JOIN rota_releases AS release ON release.fingerprint = other.release
    WHERE other.kind = 'worker' AND other.expires_at > clock_timestamp() AND {queue} = ANY(other.queues)
      AND (release.jobs IS NULL
           OR release.jobs ? {job} AND coalesce(release.jobs -> {job} ->> 'form', '') <> ALL({refused})))"""

FITS_ELSEWHERE = text(f"SELECT {MAY_FIT.format(job=':job', queue=':queue', refused='CAST(:refused AS text[])')}")

RECORD = text("""
    INSERT INTO rota_releases (fingerprint, jobs, limits)
    VALUES (:fingerprint, CAST(:jobs AS jsonb), CAST(:limits AS jsonb))
    ON CONFLICT (fingerprint) DO UPDATE SET last_seen_at = clock_timestamp()
""")

#: The time is recorded at most every 15 seconds. This is precise enough to find the release that was alive last.
SEE = text("""
    UPDATE rota_releases SET last_seen_at = clock_timestamp()
    WHERE last_seen_at < clock_timestamp() - interval '15 seconds'
      AND fingerprint IN (SELECT release FROM rota_processes WHERE expires_at > clock_timestamp())
""")

ALIVE = text("""
    SELECT process.release, release.jobs
    FROM (SELECT DISTINCT release FROM rota_processes WHERE expires_at > clock_timestamp()) AS process
    LEFT JOIN rota_releases AS release ON release.fingerprint = process.release
""")

ALIVE_FINGERPRINTS = text("SELECT DISTINCT release FROM rota_processes WHERE expires_at > clock_timestamp()")

#: If two releases are alive at the same time, the newer release counts as the last.
LAST = text("SELECT * FROM rota_releases ORDER BY date_trunc('minute', last_seen_at) DESC, first_seen_at DESC LIMIT 1")

NEWEST = text("""
    SELECT fingerprint, first_seen_at, last_seen_at, ARRAY(SELECT jsonb_object_keys(release.jobs) ORDER BY 1) AS jobs,
           EXISTS (SELECT 1 FROM rota_processes
                   WHERE rota_processes.release = fingerprint AND expires_at > clock_timestamp()) AS is_alive
    FROM rota_releases AS release ORDER BY first_seen_at DESC LIMIT :most
""")

QUEUES_EVER = text("""
    SELECT DISTINCT known.described ->> 'queue' FROM rota_releases, jsonb_each(jobs) AS known (job, described)
""")

JOBS_OF_QUEUE = text("""
    SELECT DISTINCT known.job FROM rota_releases, jsonb_each(jobs) AS known (job, described)
    WHERE known.described ->> 'queue' = :queue
""")

#: The last release that had each job. A newer release without the job counts as the removal of the job, unless the
#: newer release began more than an hour before the release with the job was last seen: no deploy takes that long, so
#: both releases are in use.
LAST_HAD = text("""
    SELECT wanted.job, owner.plugin, extract(epoch FROM clock_timestamp() - owner.last_seen_at) AS seconds,
           EXISTS (SELECT 1 FROM rota_releases AS newer
                   WHERE newer.first_seen_at > owner.first_seen_at
                     AND newer.first_seen_at > owner.last_seen_at - interval '1 hour'
                     AND NOT jsonb_exists(newer.jobs, wanted.job)) AS is_taken_away
    FROM unnest(CAST(:jobs AS text[])) AS wanted (job) CROSS JOIN LATERAL (
        SELECT jobs -> wanted.job ->> 'plugin' AS plugin, first_seen_at, last_seen_at FROM rota_releases
        WHERE jsonb_exists(jobs, wanted.job) ORDER BY last_seen_at DESC LIMIT 1) AS owner
""")


#: Each job of any release, with its plugin and queue in the release that was alive last.
PLACES = text("""
    SELECT DISTINCT ON (known.job) known.job, described ->> 'plugin' AS plugin, described ->> 'queue' AS queue
    FROM rota_releases, jsonb_each(jobs) AS known (job, described) ORDER BY known.job, last_seen_at DESC
""")

PROCESSES = text("""
    SELECT process.kind, process.name, CASE WHEN release.jobs IS NOT NULL THEN ARRAY(
        SELECT DISTINCT described ->> 'plugin' FROM jsonb_each(release.jobs) AS known (job, described)) END AS plugins
    FROM rota_processes AS process LEFT JOIN rota_releases AS release ON release.fingerprint = process.release
    WHERE process.expires_at > clock_timestamp() ORDER BY process.id
""")


SECRETS = text("""
    SELECT DISTINCT known.job, secret.name
    FROM rota_releases, jsonb_each(jobs) AS known (job, described),
         jsonb_array_elements_text(described -> 'secrets') AS secret (name)
    WHERE jobs::text LIKE '%"secrets": ["%'
""")


@dataclass(frozen=True, slots=True)
class Process:
    """A live process and its plugins that have jobs. The plugins are None if the process names no release."""

    kind: str
    name: str
    plugins: list[str] | None


@dataclass(frozen=True, slots=True)
class Release:
    """The jobs of a process, with their options."""

    jobs: Mapping[str, Mapping[str, Any]]

    @property
    def body(self) -> str:
        """Return the jobs as a JSON text. Equal jobs give the same text."""
        return json.dumps(self.jobs, sort_keys=True)

    @property
    def limits(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each limit, by its declared name.

        If two jobs declare different numbers for one limit, return the smaller numbers.
        """
        return smallest(limit for job in self.jobs.values() for limit in job.get("limits", {}).items())

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint. Releases with different jobs have different fingerprints."""
        return hashlib.sha256(self.body.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class LastHad:
    """The last release that had a certain job."""

    plugin: str
    #: The time since a process of that release was last alive, with an error of up to 20 seconds.
    seconds: float
    #: Whether a newer release does not have the job any more.
    is_taken_away: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """The jobs of all live processes."""

    #: The queues of each job. A job may have two queues during a deploy.
    queues_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: Whether every live process has named its release.
    is_complete: bool = True
    #: The options of each job whose keys have schedules.
    keyed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def knows(self, job: str) -> bool:
        """Return whether a live process has ``job``, or may have it."""
        return job in self.queues_of or not self.is_complete

    @property
    def queues(self) -> frozenset[str]:
        """Return the queues that a job uses."""
        return frozenset().union(*self.queues_of.values())


def of(registry: Registry) -> Release:
    """Return the release of a process with this registry."""
    return Release({job.name: described(job, registry.owners[job.name].name) for job in registry})


def described(job: Job, plugin: str) -> dict[str, Any]:
    """Return the options of a job as the release records them. ``rota diff`` compares them one by one."""
    return {
        "plugin": plugin,
        "queue": job.queue,
        "schedule": str(job.schedule) if job.schedule else None,
        "max_retries": job.max_retries,
        "retry_delay_seconds": job.retry_delay.total_seconds(),
        "backoff": job.backoff,
        **retry_rules(job),
        **({"expires_seconds": job.expires.total_seconds()} if job.expires is not None else {}),
        **({"priority": job.priority} if job.priority else {}),
        **({"keyed": bounds(job.keyed)} if job.keyed is not None else {}),
        "overlap": job.overlap,
        "misfire": job.misfire,
        "misfire_grace_seconds": job.misfire_grace.total_seconds(),
        "misfire_cap": job.misfire_cap,
        "soft_limit_seconds": job.soft_limit.total_seconds(),
        "hard_limit_seconds": job.hard_limit.total_seconds(),
        "ledger": job.ledger,
        "arguments": arguments.declared(job),
        "secrets": sorted(secret_names(job)),
        "subject": f"{job.subject.table} by {job.subject.parameter}" if job.subject else None,
        "form": arguments.form(job),
        **({"limits": {limit.name: limit.numbers for limit in job.limits}} if job.limits else {}),
    }


def bounds(keyed: Keyed) -> dict[str, Any]:
    """Return the parts of the option ``keyed``, as the release records them."""
    backoff = {"backoff_after": keyed.backoff_after, "backoff_longest_seconds": keyed.backoff_longest.total_seconds()}
    return {
        "least_seconds": keyed.least.total_seconds(),
        "most_seconds": keyed.most.total_seconds(),
        "default": str(keyed.default) if keyed.default is not None else None,
        **(backoff if keyed.backoff_after is not None else {}),
        **({"keep": keyed.keep} if keyed.keep != "all" else {}),
    }


def retry_rules(job: Job) -> dict[str, Any]:
    """Return the retry options that a job declares. For options that a release does not record, the defaults apply."""
    longest = job.longest_delay if job.longest_delay != LONGEST_RETRY_DELAY else None
    rules = {
        "longest_delay_seconds": longest.total_seconds() if longest is not None else None,
        "jitter": job.jitter,
        "retry_on": [qualified(each) for each in job.retry_on],
        "dead_on": [qualified(each) for each in job.dead_on],
    }
    return {name: value for name, value in rules.items() if value}


def qualified(error: type[BaseException]) -> str:
    """Return the name of an exception's type with its module."""
    return error.__qualname__ if error.__module__ == "builtins" else f"{error.__module__}.{error.__qualname__}"


def fits_elsewhere(connection: Connection, job: str, queue: str, refused: Collection[str]) -> bool:
    """Return whether a live worker of ``queue`` may have ``job`` in a form other than the ``refused`` ones."""
    values = {"job": job, "queue": queue, "refused": list(refused)}
    return bool(connection.execute(FITS_ELSEWHERE, values).scalar_one())


def processes(connection: Connection) -> list[Process]:
    """Return all live processes, each with its plugins that have jobs."""
    return [Process(row.kind, row.name, row.plugins) for row in connection.execute(PROCESSES)]


def record(connection: Connection, release: Release) -> None:
    """Record that ``release`` is in use now."""
    limits = json.dumps(release.limits) if release.limits else None
    connection.execute(RECORD, {"fingerprint": release.fingerprint, "jobs": release.body, "limits": limits})


def see(connection: Connection) -> None:
    """Record that the releases of all live processes are still in use."""
    connection.execute(SEE)


def fleet(connection: Connection) -> Fleet:
    """Return the jobs of all live processes."""
    return fleet_of(connection.execute(ALIVE).all())


class FleetCache:
    """A cache of the fleet for repeated queries. The jobs of a release are read once, since they never change."""

    def __init__(self) -> None:
        self._releases: frozenset[str | None] = frozenset()
        self._fleet = Fleet()

    def fleet(self, connection: Connection) -> Fleet:
        """Return the jobs of all live processes."""
        if frozenset(connection.execute(ALIVE_FINGERPRINTS).scalars()) != self._releases:
            rows = connection.execute(ALIVE).all()
            self._releases = frozenset(row.release for row in rows)
            self._fleet = fleet_of(rows)
        return self._fleet


def fleet_of(releases: Collection[Row[Any]]) -> Fleet:
    """Return the fleet whose live processes have these releases."""
    jobs = [(job, options) for release in releases for job, options in (release.jobs or {}).items()]
    return Fleet(
        queues_of(releases),
        is_complete=all(release.jobs is not None for release in releases),
        keyed={job: options for job, options in jobs if options.get("keyed")},
    )


def queues_of(releases: Collection[Row[Any]]) -> dict[str, frozenset[str]]:
    """Return each job of ``releases`` with its queues."""
    found: dict[str, set[str]] = {}
    for release in releases:
        for job, options in (release.jobs or {}).items():
            found.setdefault(job, set()).add(options["queue"])
    return {job: frozenset(queues) for job, queues in found.items()}


def scopes_of_jobs(connection: Connection) -> dict[str, set[str]]:
    """Return each job that a live process has, with the scopes of the pauses that would pause the job."""
    found: dict[str, set[str]] = {}
    for release in connection.execute(ALIVE).all():
        for job, options in (release.jobs or {}).items():
            found.setdefault(job, set()).update(scopes(job, options["queue"], options["plugin"]))
    return found


def last(connection: Connection) -> Release | None:
    """Return the release that was alive last, or None if there never was a release."""
    row = connection.execute(LAST).one_or_none()
    return Release(row.jobs) if row else None


def newest(connection: Connection, most: int) -> list[Row[Any]]:
    """Return the ``most`` newest releases, by the time when they were first used, each with its jobs."""
    return list(connection.execute(NEWEST, {"most": most}).all())


def queues_ever(connection: Connection) -> set[str]:
    """Return the queues of all jobs of all releases, past and present."""
    return set(connection.execute(QUEUES_EVER).scalars())


def secrets(connection: Connection) -> dict[str, frozenset[str]]:
    """Return the secret arguments of each job that has secret arguments, in all releases, past and present."""
    found: dict[str, set[str]] = {}
    for row in connection.execute(SECRETS):
        found.setdefault(row.job, set()).add(row.name)
    return {job: frozenset(names) for job, names in found.items()}


def places(connection: Connection) -> list[Row[Any]]:
    """Return each job that any release had, with its last plugin and queue."""
    return list(connection.execute(PLACES).all())


def jobs_of_queue(connection: Connection, queue: str) -> set[str]:
    """Return the jobs that had this queue in any release."""
    return set(connection.execute(JOBS_OF_QUEUE, {"queue": queue}).scalars())


def last_had(connection: Connection, jobs: Collection[str]) -> dict[str, LastHad]:
    """Return, for each of ``jobs``, the last release that had the job. A job that no release ever had is left out."""
    rows = connection.execute(LAST_HAD, {"jobs": list(jobs)})
    return {row.job: LastHad(row.plugin, float(row.seconds), row.is_taken_away) for row in rows}


def last_owners(connection: Connection, jobs: Collection[str]) -> dict[str, str]:
    """Return the plugin of each of ``jobs`` in the last release that had the job."""
    return {job: had.plugin for job, had in last_had(connection, jobs).items()}
