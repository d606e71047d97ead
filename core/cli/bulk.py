"""Doing something to many runs: shown first, confirmed, batch by batch, at a steady rate, and stopped by Ctrl-C.

Each batch is a transaction of its own with its part of the audit, so that whatever stops it leaves a whole number of
batches, and says how many runs that were.
"""

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import click
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError

from core import database
from core.cli import Problem
from core.cli.confirmation import confirm
from core.cli.output import print_json, print_table
from core.cli.runs import described, row
from core.ledger import audit, history
from core.ledger.audit import Actor

#: How many runs are changed in one transaction.
BATCH = 500
#: How many runs are shown before they are changed.
SHOWN = 20


def doing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` the options of how it is done."""
    options = [
        click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N per second."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to runs, and how it is spoken of."""

    #: ``retry`` and ``retried``, say.
    verb: audit.Action
    done: str
    act: Callable[[Connection, Sequence[int]], int]
    actor: Actor
    target: str
    criteria: dict[str, str]


def show(connection: Connection, runs: Sequence[Row[Any]]) -> None:
    """Show the first of ``runs``, and how many there are of each job and kind."""
    columns = ("id", "job", "key", "slot", "state", "attempt", "started", "took", "what came of it")
    found = [history.run(connection, run.id) for run in runs[:SHOWN]]
    print_table(columns, [row(run) for run in found if run is not None])
    for (job, state, reason), count in sorted(Counter((run.job, run.state, run.reason or "") for run in runs).items()):
        click.echo(f"{job}: {count} {state}{f' ({reason})' if reason else ''}")


def carry_out(engine: Engine, runs: Sequence[Row[Any]], deed: Deed, *, rate: float | None) -> int:
    """Do it to all of ``runs``; return to how many it was done. Raises Problem if it was stopped on the way."""
    done, entry = 0, None
    run_ids = [run.id for run in runs]
    with stoppable() as stop, progress(len(run_ids)) as advance:
        try:
            for batch in paced(run_ids, rate, stop):
                with engine.begin() as connection:
                    count = deed.act(connection, batch)
                    if entry is None and count:
                        details = {"runs": count, "ids": named(run_ids, deed), **deed.criteria}
                        entry = audit.record(connection, deed.actor, deed.verb, deed.target, **details)
                    elif entry is not None:
                        audit.amend(connection, entry, runs=done + count)
                done += count
                advance(len(batch))
        except DBAPIError as error:
            raise Problem(f"{deed.done} {done} of {len(run_ids)}, then: {database.brief(error)}") from error
    if stop.is_set():
        raise Problem(f"stopped: {deed.done} {done} of {len(run_ids)}; the others are as they were")
    return done


def named(run_ids: list[int], deed: Deed) -> list[int] | None:
    """The ids for the audit, where somebody has named them."""
    return None if deed.criteria else run_ids


def paced(run_ids: Sequence[int], rate: float | None, stop: threading.Event) -> Iterator[list[int]]:
    """``run_ids`` in batches, no more of them per second than ``rate``, until ``stop``."""
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    began, taken, ids = time.monotonic(), 0, iter(run_ids)
    while (batch := list(islice(ids, size))) and not stop.is_set():
        yield batch
        taken += len(batch)
        if rate is not None and taken < len(run_ids):
            stop.wait(max(began + taken / rate - time.monotonic(), 0))


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a transaction under way is counted; a second Ctrl-C does not wait for it."""
    stop = threading.Event()

    def on_interrupt(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress(length: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, if there is one; it is told how much was done."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    with click.progressbar(length=length, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


def run_deed(
    engine: Engine, runs: Sequence[Row[Any]], deed: Deed, *, dry_run: bool, yes: bool, rate: float | None, as_json: bool
) -> None:
    """Show, ask, do, and say what was done. Raises Problem if that was nothing."""
    total = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    if not as_json:
        with engine.connect() as connection:
            show(connection, runs)
    if not dry_run:
        confirm(f"{deed.verb.capitalize()} {'this run' if len(runs) == 1 else f'these {total}'}?", is_given=yes)
    done = 0 if dry_run else carry_out(engine, runs, deed, rate=rate)
    if as_json:
        print_json({"matched": len(runs), deed.done: done, "runs": after(engine, runs)})
    elif dry_run:
        click.echo(f"would {deed.verb} {total}; nothing was changed")
    else:
        click.echo(f"{deed.done} {done} of {total}" if done < len(runs) else f"{deed.done} {total}")
    if not dry_run and done < len(runs):
        left = len(runs) - done
        click.echo(f"rota: {left} had changed meanwhile, by somebody else's hand or by themselves", err=True)
    if not dry_run and not done:
        raise Problem("nothing was changed")


def after(engine: Engine, runs: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """The first of ``runs`` as they are now."""
    with engine.connect() as connection:
        found = [history.run(connection, run.id) for run in runs[:SHOWN]]
    return [described(run) for run in found if run is not None]
