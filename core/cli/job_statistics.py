"""``rota jobs JOB``: shows how many runs of a job ended how, and how long they took."""

from datetime import timedelta

from core.cli.environment import looking
from core.cli.moments import read
from core.cli.output import print_json, say
from core.cli.tables import Column, print_table
from core.ledger import history
from core.operations import statistics
from core.operations.statistics import Ended, Statistics, Took
from core.operations.wording import local, local_zone, span
from core.plugins import loading


def show(job: str, since: str | None, *, as_json: bool) -> None:
    """Print the statistics of a job."""
    with read(), looking() as engine, engine.connect() as connection:
        found = statistics.of_job(connection, loading.current(), job, since=since)
        zone = local_zone(history.now(connection))
    if as_json:
        print_json(found)
        return
    rows = [row(local(step.at), step) for step in found.items]
    print_table(columns(zone), [*rows, row("in all", found.total)] if rows else [], empty="no runs ended in that time")
    say(counted(found))


def columns(zone: str) -> list[Column]:
    """Return the columns of the table, with times in ``zone``."""
    outcomes = [Column(name, rank=1 + rank) for rank, name in enumerate(("dead", "skipped", "missed", "orphaned"))]
    took = [Column("mean", rank=5), Column("p50"), Column("p95"), Column("p99", rank=6)]
    return [Column(f"from ({zone})"), Column("succeeded"), *outcomes, Column("withdrawn", rank=7), *took]


def row(name: str, ended: Ended) -> tuple[str, ...]:
    """Return the counts of a step as a row of the table."""
    counts = (ended.succeeded, ended.dead, ended.skipped, ended.missed, ended.orphaned, ended.withdrawn)
    return (name, *map(str, counts), *durations(ended.took_seconds))


def durations(took: Took | None) -> list[str]:
    """Return how long runs took, as text."""
    if took is None:
        return [""] * 4
    return [span(timedelta(seconds=seconds)) for seconds in (took.mean, took.p50, took.p95, took.p99)]


def counted(found: Statistics) -> str:
    """Return up to which time runs are counted."""
    if found.counted_until is None:
        return "no runs have been counted yet; the job count-runs counts them every five minutes"
    return f"steps of {span(timedelta(seconds=found.step_seconds))}; counted until {local(found.counted_until)}"
