"""Retries, drops or cancels many runs. Shows the runs, asks for confirmation, shows progress, and stops at Ctrl-C."""

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from sqlalchemy import Connection, Engine

from core.cli import Problem
from core.cli.confirmation import confirm
from core.cli.output import print_json, say, warn
from core.cli.runs import columns, row
from core.cli.tables import print_table
from core.ledger import history
from core.operations import bulk
from core.operations.bulk import Plan
from core.operations.wording import local_zone


def doing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--dry-run``, ``--yes`` and ``--rate`` to ``command``."""
    options = [
        click.option("--dry-run", is_flag=True, help="Show the runs, and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
        click.option(
            "--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N runs per second."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def carry_out(engine: Engine, plan: Plan, *, dry_run: bool, yes: bool, rate: float | None, as_json: bool) -> None:
    """Show the plan, ask, carry the plan out and print the outcome. Raises Problem if no run was changed."""
    matched = len(plan.runs)
    total = "1 run" if matched == 1 else f"{matched} runs"
    if not as_json:
        with engine.connect() as connection:
            show(connection, plan)
    if not dry_run:
        confirm(f"{plan.verb.capitalize()} {'this run' if matched == 1 else f'these {total}'}?", is_given=yes)
    done = 0 if dry_run else stoppably(engine, plan, rate)
    if as_json:
        with engine.connect() as connection:
            print_json(bulk.outcome(connection, plan, done))
    elif dry_run:
        say(f"would {plan.verb} {total}; nothing was changed")
    else:
        say(f"{plan.done} {done} of {total}" if done < matched else f"{plan.done} {total}")
    if not dry_run and done < matched:
        left = matched - done
        warn(f"{left} of them had changed since they were selected")
    if not dry_run and not done:
        raise Problem("nothing was changed")


def show(connection: Connection, plan: Plan) -> None:
    """Show the first of the runs, and the number of runs of each job, state and reason."""
    zone = local_zone(history.now(connection))
    print_table(columns(zone), [row(run) for run in bulk.first(connection, plan)])
    kinds = Counter((run.job, run.state, run.reason or "") for run in plan.runs)
    for (job, state, reason), count in sorted(kinds.items()):
        say(f"{job}: {count} {state}{f' ({reason})' if reason else ''}")


def stoppably(engine: Engine, plan: Plan, rate: float | None) -> int:
    """Carry out the plan, or stop at Ctrl-C. Return how many runs were changed."""
    with stoppable() as stop, progress(len(plan.runs)) as advance:
        return bulk.carry_out(engine, plan, rate=rate, stop=stop, advance=advance)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that the current batch is finished. A second Ctrl-C interrupts the batch."""
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
    """Show a progress bar, if there is a terminal. Yield a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    with click.progressbar(length=length, file=sys.stderr, show_pos=True) as bar:
        yield bar.update
