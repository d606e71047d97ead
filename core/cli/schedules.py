"""``rota schedules``: lists schedules made at run time, and changes them by hand."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from core.cli import Group, moments
from core.cli.actor import by_option
from core.cli.confirmation import confirm
from core.cli.environment import ledger, looking
from core.cli.output import as_json, print_json, say
from core.cli.tables import Column, print_table
from core.jobs.keyed import KeySchedule
from core.jobs.schedules import cron
from core.key_schedules import Difference
from core.ledger import history
from core.ledger.audit import Actor
from core.operations import key_totals, wanted_schedules
from core.operations import schedules as operations
from core.operations.key_totals import Totals
from core.operations.schedules import Schedule, Wanted
from core.operations.wording import due_in_backoff, local, local_zone
from core.plugins import loading

#: A dry run shows at most this many keys of each kind.
MOST_KEYS_SHOWN = 10


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.option("--job", metavar="JOB", help="Only schedules of this job.")
@click.option("--key", metavar="KEY", help="Only schedules of this key.")
@click.option("--paused", "is_paused", is_flag=True, help="Only paused schedules.")
@click.option(
    "--backing-off",
    "is_backing_off",
    is_flag=True,
    help="Only schedules with fewer slots, since several runs in a row were dead.",
)
@click.option("--orphaned", "is_orphaned", is_flag=True, help="Only schedules whose job no live process has.")
@click.option("--after", metavar="KEY", default="", help="Only keys that come after this key.")
@click.option(
    "--limit", metavar="N", default=50, type=click.IntRange(1, 100_000), help="At most N schedules; 50 by default."
)
@click.pass_context
def schedules(ctx: click.Context, /, as_json: bool, **chosen: Any) -> None:
    """List the schedules made at run time. They belong to keys of jobs that are declared with keyed=.

    \b
      rota schedules --job poll-mailbox --paused
      rota schedules --json | jq '.[].key'
      rota schedules add poll-mailbox 42 --every 60s
    """
    if ctx.invoked_subcommand is not None:
        return
    with looking() as engine, engine.connect() as connection:
        found = operations.found(connection, loading.current(), Wanted(**chosen))
        zone = local_zone(history.now(connection))
    if as_json:
        print_json(found)
        return
    columns = (
        Column("job"),
        Column("key"),
        Column("schedule", rank=1),
        Column(f"next slot ({zone})", rank=2),
        Column("state", rank=3, least=16),
    )
    rows = [(each.job, each.key, each.schedule, local(each.next_at), state(each)) for each in found]
    is_narrowed = any(value for name, value in chosen.items() if name != "limit")
    print_table(columns, rows, empty="no schedules match" if is_narrowed else "no schedules")


def state(found: Schedule) -> str:
    """Return the reason why not every slot of a schedule comes due, or an empty text if every slot does."""
    if found.is_orphaned:
        return "orphaned: no live process has its job"
    if found.paused_by is not None:
        until = f" until {local(found.paused_until)}" if found.paused_until else ""
        return f"paused by {found.paused_by}{until}{f': {found.pause_reason}' if found.pause_reason else ''}"
    return f"backs off: {due_in_backoff(found.schedule, found.stretch)}" if found.stretch else ""


@schedules.command()
@click.argument("job")
@click.argument("key")
@click.option("--every", type=moments.Span(), metavar="SPAN", help="An interval: 60s, 15m, 1d.")
@click.option("--cron", "expression", metavar="EXPRESSION", help="A cron expression, in --tz.")
@click.option("--tz", metavar="ZONE", help="The time zone of --cron; UTC by default.")
@click.option(
    "--spread", type=moments.Span(), metavar="SPAN", help="Spread the slots of different keys over this span."
)
@click.option("--priority", type=click.IntRange(0, 9), help="The priority of its runs; by default the job's priority.")
@click.option("--now", "is_now", is_flag=True, help="Also request a run now.")
@by_option
def add(
    job: str,
    key: str,
    every: timedelta | None,
    expression: str | None,
    tz: str | None,
    spread: timedelta | None,
    priority: int | None,
    is_now: bool,
    by: Actor,
) -> None:
    """Give KEY of JOB a schedule, or change its schedule. Without --every and --cron, this is the job's default.

    The arguments of the key's runs stay as they are. A new key has no arguments; an application can give arguments with
    the function `schedule`.

    \b
      rota schedules add poll-mailbox 42 --every 60s
      rota schedules add send-report ann --cron "0 7 * * mon" --tz Europe/London --spread 10m
    """
    if tz is not None and expression is None:
        raise click.UsageError("--tz needs --cron; an interval has no time zone")
    timing = cron(expression, tz=tz or "UTC") if expression is not None else None
    wanted = KeySchedule(key, every, timing, spread or timedelta(0), priority=priority)
    with ledger() as engine:
        changed = operations.add(engine, job, wanted, by, first="now" if is_now else "spread")
    say(f"{'scheduled' if changed else 'nothing to change:'} {job} for the key {key}")


@schedules.command()
@click.argument("job")
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
def remove(job: str, key: str, yes: bool, by: Actor) -> None:
    """Remove the schedule of KEY of JOB. Slots that no worker has started are skipped.

    \b
      rota schedules remove poll-mailbox 42
    """
    confirm(f"Remove the schedule of {job} for the key {key}?", is_given=yes)
    with ledger() as engine:
        operations.remove(engine, job, key, by)
    say(f"removed the schedule of {job} for the key {key}")


@schedules.command()
@click.argument("job")
@click.argument("key")
@click.option("--reason", metavar="TEXT", help="The reason, for other people.")
@click.option(
    "--for", "lasting", type=moments.Span(), metavar="SPAN", help="End the pause after this span: 30m, 2h, 1d12h."
)
@click.option("--until", metavar="TIME", help="End the pause at this time: 18:00, 2026-11-23T18:00.")
@by_option
def pause(
    job: str, key: str, reason: str | None, lasting: timedelta | None, until: str | None, by: Actor
) -> None:  # fmt: skip
    """Pause the schedule of KEY of JOB. No slot comes due during the pause, but requested runs start.

    \b
      rota schedules pause poll-mailbox 42 --reason "wrong password" --for 2h
    """
    if lasting is not None and until is not None:
        raise click.UsageError("--for and --until contradict each other; give one")
    with moments.read(), ledger() as engine:
        end_at = operations.pause(engine, job, key, by, reason=reason, lasting=lasting, until=until)
    say(f"paused {job} for the key {key} {f'until {local(end_at)}' if end_at else 'until it is resumed'}")


@schedules.command()
@click.argument("job")
@click.argument("key")
@by_option
def resume(job: str, key: str, by: Actor) -> None:
    """End the pause of KEY of JOB, and its back-off.

    \b
      rota schedules resume poll-mailbox 42
    """
    with ledger() as engine:
        operations.resume(engine, job, key, by)
    say(f"resumed {job} for the key {key}")


@schedules.command()
@click.argument("job")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option(
    "--most-removed",
    metavar="PART",
    default=0.5,
    type=click.FloatRange(0, 1),
    show_default=True,
    help="Refuse to remove more than this part of the schedules; 1 allows the removal of all.",
)
@by_option
def sync(job: str, dry_run: bool, most_removed: float, by: Actor) -> None:
    """Give the keys of JOB the schedules that its plugin wants: add, change and remove what differs.

    The plugin reads the wanted schedules in its hook register_schedules.

    \b
      rota schedules sync poll-mailbox --dry-run
    """
    with ledger(statement_timeout_seconds=0) as engine:
        if dry_run:
            say(*differences(wanted_schedules.compare(engine, loading.current(), job, most_removed=most_removed)))
            return
        done = wanted_schedules.sync(engine, loading.current(), job, by, most_removed=most_removed)
    say(f"{job}: {done.added} added, {done.changed} changed, {done.removed} removed, {done.kept} kept")


def differences(found: Difference) -> list[str]:
    """Return what a sync would change, with the first keys, in words."""
    keys = {
        "added": [each.key for each in found.added],
        "changed": [each.key for each in found.changed],
        "removed": found.removed,
    }
    shown = [f"would be {verb}: {len(each)}{shortened(each)}" for verb, each in keys.items() if each]
    return [*shown, f"would be kept: {found.kept}"]


def shortened(keys: Sequence[str]) -> str:
    """Return the first of the keys in sorted order, in brackets."""
    first = sorted(keys)[:MOST_KEYS_SHOWN]
    return f" ({', '.join(first)}{', …' if len(keys) > len(first) else ''})"


@schedules.command()
@as_json
@click.option("--job", metavar="JOB", help="Only this job.")
@click.option(
    "--for", "lasting", type=moments.Span(), metavar="SPAN", default="1d", help="The last SPAN: 2h; 1d by default."
)
def totals(job: str | None, lasting: timedelta, as_json: bool) -> None:
    """Count the schedules of each job, and the outcomes of their slots.

    Slots that were left out by a pause, an outage or a back-off have no runs; they are counted as well. Runs that were
    deleted because their job keeps only failures are also counted.

    \b
      rota schedules totals --for 2h
    """
    with looking() as engine, engine.connect() as connection:
        found = key_totals.totals(connection, loading.current(), job, lasting)
    if as_json:
        print_json(found)
        return
    columns = (
        Column("job"), Column("schedules"), Column("paused", rank=2), Column("backing off", rank=2),
        Column("succeeded"), Column("dead"), Column("skipped", rank=1), Column("missed", rank=1),
        Column("orphaned", rank=2), Column("without runs", rank=1),
    )  # fmt: skip
    print_table(columns, [total(each) for each in found], empty="no schedules")


def total(found: Totals) -> tuple[str, ...]:
    """Return the totals of a job, as a row of the table."""
    counts = (
        found.schedules, found.paused, found.backing_off, found.succeeded, found.dead, found.skipped, found.missed,
        found.orphaned,
    )  # fmt: skip
    return (found.job, *map(str, counts), ", ".join(f"{count} {reason}" for reason, count in found.gaps.items()))


@schedules.command()
@click.argument("job", required=False)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
def clean(job: str | None, yes: bool, by: Actor) -> None:
    """Remove the schedules of JOB, or of all jobs, that no live process has any more.

    Schedules that are not removed continue when a process with the job is back.

    \b
      rota schedules --orphaned
      rota schedules clean poll-mailbox
    """
    with ledger(statement_timeout_seconds=0) as engine:
        with engine.connect() as connection:
            counts = operations.cleanable(connection, loading.current(), job)
        if not counts:
            say("no orphaned schedules")
            return
        for name, count in counts.items():
            say(f"{name}: {count}")
        confirm(f"Remove these {sum(counts.values())} schedules?", is_given=yes)
        removed = operations.clean(engine, loading.current(), counts, by)
    say(f"removed {removed}")
