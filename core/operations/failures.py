"""Dead runs that nobody has retried or dropped, in groups of the same job and the same kind of error."""

import hashlib
import re
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row

from core.jobs.registry import Registry
from core.ledger import failures, history
from core.observability.redaction import HIDDEN
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape
from core.operations.redaction import redactor

#: At most this many of the newest dead runs are read.
MOST_RUNS = 10_000
#: At most this many groups are returned.
MOST_GROUPS = 100
#: The most characters of an error by which a plan selects runs.
LONGEST_FRAGMENT = 200
#: Parts of an error that differ from run to run: numbers, and texts in quotes.
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+")


class Failure(Shape):
    """A group of dead runs."""

    #: A hash, which is the same for all failures with the same job, reason and kind of error.
    fingerprint: str
    job: str
    reason: str | None
    runs: int
    first_at: Instant
    last_at: Instant
    #: The id of the newest run.
    newest: int
    #: The error of the newest run.
    error: str | None


class Failures(Shape):
    """The groups of dead runs, the largest first."""

    items: list[Failure]
    #: The number of dead runs that were read.
    looked_at: int
    #: Whether all dead runs of the span were read.
    is_complete: bool


def grouped(connection: Connection, registry: Registry, lasting: timedelta, view: View = WHOLE) -> Failures:
    """Return the groups of dead runs that ended within ``lasting`` before now. A retried run is no longer dead."""
    since = history.now(connection) - lasting
    found = failures.newest(connection, since=since, jobs=view.jobs, most=MOST_RUNS)
    groups: dict[tuple[str, str, str], list[Row[Any]]] = {}
    for run in found:
        groups.setdefault(kind(run), []).append(run)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:MOST_GROUPS]
    hiding = redactor(connection, registry, view)
    newest = failures.whole(connection, [runs[0].id for _, runs in largest])
    errors = {run_id: hiding.run(run).error for run_id, run in newest.items()}
    items = [shape(fingerprint(*which), runs, errors.get(runs[0].id)) for which, runs in largest]
    return Failures(items=items, looked_at=len(found), is_complete=len(found) < MOST_RUNS)


def shape(name: str, runs: list[Row[Any]], error: str | None) -> Failure:
    """Return a group of runs as JSON. The first of ``runs`` is the newest."""
    newest = runs[0]
    return Failure(
        fingerprint=name,
        job=newest.job,
        reason=newest.reason,
        runs=len(runs),
        first_at=min(run.finished_at for run in runs),
        last_at=max(run.finished_at for run in runs),
        newest=newest.id,
        error=error,
    )


def fragment(error: str | None) -> str | None:
    """Return the longest part that the errors of a group share, or None. A plan selects the group's runs by it."""
    line = (error or "").partition("\n")[0].replace(HIDDEN, "''")
    longest = max(VARYING.split(line), key=len).strip()
    return longest[:LONGEST_FRAGMENT] or None


def kind(run: Row[Any]) -> tuple[str, str, str]:
    """Return the job, the reason and the first line of the error without the parts that vary."""
    return run.job, str(run.reason), VARYING.sub("…", (run.error or "").partition("\n")[0])


def fingerprint(job: str, reason: str, line: str) -> str:
    """Return a hash of the kind of failures."""
    return hashlib.sha256(f"{job}\0{reason}\0{line}".encode(errors="replace")).hexdigest()[:16]
