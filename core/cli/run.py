"""``rota run``: have a job run now, and follow it if asked to."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core import enqueue
from core.cli import Problem
from core.cli.actor import by_option
from core.cli.pauses import in_words, of_job
from core.cli.runs import brief
from core.cli.surroundings import ledger
from core.errors import BadArguments
from core.ledger import audit, history
from core.ledger.audit import Actor
from core.ledger.models import FINAL, State
from core.plugins import loading

POLL_SECONDS = 0.2
#: A run that nobody has taken for this long makes us ask whether there is a worker.
PATIENCE_SECONDS = 1.0


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"this is not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('expected a JSON object of the arguments by name, such as \'{"region": "uk"}\'', param, ctx)
        return parsed


@click.command()
@click.argument("job")
@click.option("--key", default="", help="Tells apart runs of one job that may go on side by side.")
@click.option("--args", type=JsonObject(), metavar="JSON", help="The arguments, by name, as a JSON object.")
@click.option("--wait", is_flag=True, help="Follow the run to its end; exit status 0 only if it succeeded.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: follow it no longer.")
@by_option
def run(job: str, key: str, args: dict[str, Any] | None, wait: bool, timeout: float | None, by: Actor) -> None:
    """Have JOB run now, and print the id of its run. While the job is paused, the run waits.

    The run is a row in the ledger; a worker takes it from there, within a second and without Redis. What a job on the
    fast lane (ledger=False) is sent leaves no row to follow, so it is refused here: send it a message from code.

    \b
      rota run close-day --args '{"region": "uk"}' --wait
      rota run poll-mailbox --key 42
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    refuse_fast_lane(job)
    with ledger() as engine:
        with Session(engine) as session, session.begin():
            run_id = enqueue(session, job, key=key, args=args)
            audit.record(session, by, "run", job, run=run_id, arguments=sorted(args) if args else None)
            pauses = of_job(session.connection(), job)
        click.echo(str(run_id))
        for pause in pauses:
            click.echo(f"rota: {job} is {in_words(pause)}; the run waits until that ends", err=True)
        if wait:
            follow(engine, run_id, timeout)


def refuse_fast_lane(job: str) -> None:
    """Raise BadArguments for a job whose runs are not in the ledger."""
    if not loading.current().job(job).ledger:
        raise BadArguments(
            f"job {job!r} is on the fast lane (ledger=False): nothing would record or answer for such a run; "
            "send it a message from code, or declare it with ledger=True"
        )


def follow(engine: Engine, run_id: int, timeout_seconds: float | None) -> None:
    """Show how the run goes until it is over. Raises Problem unless it succeeded in time."""
    try:
        with status_line() as show:
            row = ended(engine, run_id, timeout_seconds, show)
    except KeyboardInterrupt:
        raise Problem(f"no longer following run {run_id}, which goes on: rota runs") from None
    if row.state not in FINAL:
        raise Problem(f"run {run_id} is {row.state} after {timeout_seconds:g} s, and goes on: rota runs")
    if row.state != State.SUCCEEDED:
        why = ": ".join(part for part in (row.reason, row.error) if part)
        raise Problem(f"run {run_id} is {row.state}: {why}" if why else f"run {run_id} is {row.state}")
    result = brief(row.result, longest=10_000)
    click.echo(f"succeeded{f': {result}' if result else ''}", err=True)


def ended(engine: Engine, run_id: int, timeout_seconds: float | None, show: Callable[[str], None]) -> history.Run:
    """The run once it is over, or when the time is up."""
    began, is_warned = time.monotonic(), False
    while True:
        with engine.connect() as connection:
            row = history.run(connection, run_id)
            if row is None:
                raise Problem(f"run {run_id} is no longer in the ledger")
            waited = time.monotonic() - began
            is_alone = row.state in (State.QUEUED, State.RETRYING) and waited > PATIENCE_SECONDS
            if is_alone and not is_warned and not history.serves(history.alive(connection), row.queue):
                click.echo(f"rota: no worker is alive for queue {row.queue!r}; waiting for one to start", err=True)
                is_warned = True
        show(in_short(row))
        if row.state in FINAL or (timeout_seconds is not None and waited >= timeout_seconds):
            return row
        time.sleep(POLL_SECONDS)


def in_short(row: history.Run) -> str:
    """Where a run stands, in a line."""
    attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
    doing = brief(row.progress) if row.state == State.RUNNING else row.reason or ""
    return f"run {row.id}: {row.state}{attempt}{f' ({doing})' if doing else ''}"


def status_line() -> AbstractContextManager[Callable[[str], None]]:
    """A line that changes in place on a terminal; elsewhere, nothing."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _line: None)
    from core.cli.spinner import spinning

    return spinning()
