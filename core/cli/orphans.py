"""``rota orphans``: runs whose job was gone, and taking them up again."""

from collections.abc import Collection
from dataclasses import asdict

import click
from sqlalchemy import Connection, Engine

from core import database
from core.cli import Problem
from core.cli.actor import by_option
from core.cli.confirmation import confirm
from core.cli.output import as_json, local, local_zone, print_json, print_table
from core.cli.runs import described, refuse_unknown
from core.cli.surroundings import ledger
from core.errors import PluginError, suggestion
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import audit, history, releases
from core.ledger import orphans as found_orphans
from core.ledger.audit import Actor
from core.plugins import loading

RUNS_SHOWN = 50


@click.group(invoke_without_command=True)
@as_json
@click.option("--job", metavar="JOB", help="Only of this job.")
@click.option("--plugin", metavar="PLUGIN", help="Only of jobs that are or were this plugin's.")
@click.pass_context
def orphans(ctx: click.Context, as_json: bool, job: str | None, plugin: str | None) -> None:
    """List the runs that ended as orphaned because no live process had their job.

    \b
      rota orphans
      rota orphans --plugin billing --json
      rota orphans adopt close-day
    """
    if ctx.invoked_subcommand is not None:
        return
    with ledger() as engine, engine.connect() as connection:
        jobs = selected(connection, job, plugin)
        counts = found_orphans.counts(connection, jobs)
        runs = found_orphans.newest(connection, jobs, limit=RUNS_SHOWN)
        zone = local_zone(history.now(connection))
    if as_json:
        shown = [{**described(run), "former_state": run.former_state} for run in runs]
        print_json({"counts": [asdict(count) for count in counts], "runs": shown})
        return
    rows = [(c.job, str(c.runs), c.was or "", c.reason or "", local(c.last_at)) for c in counts]
    columns = ("job", "runs", "were", "their plugin is", f"orphaned ({zone})")
    print_table(columns, rows, empty="no orphans" if jobs is None else "no orphans match")


def selected(connection: Connection, job: str | None, plugin: str | None) -> Collection[str] | None:
    """The jobs that the options name; None: all. Raises UnknownJob."""
    if job is not None:
        refuse_unknown(connection, job)
    if plugin is None:
        return None if job is None else [job]
    of_plugin = jobs_of(connection, plugin)
    return of_plugin if job is None else {job} & of_plugin


def jobs_of(connection: Connection, plugin: str) -> set[str]:
    """The jobs with orphans that are ``plugin``'s, or were in the last release that had them."""
    jobs = [count.job for count in found_orphans.counts(connection)]
    return {job for job, owner in releases.last_owners(connection, jobs).items() if owner == plugin}


@orphans.command()
@click.argument("job", required=False)
@click.option("--plugin", metavar="PLUGIN", help="All of this plugin's jobs.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@by_option
def adopt(job: str | None, plugin: str | None, yes: bool, by: Actor) -> None:
    """Take the orphans of JOB, or of all jobs of a plugin, up again.

    They must be known here, and to the processes that are alive. What waited waits again, and is run even if its slot
    is long past; what was dead is dead again.

    \b
      rota orphans adopt close-day
      rota orphans adopt --plugin billing --yes
    """
    if (job is None) == (plugin is None):
        raise click.UsageError("name a job, or a plugin with --plugin")
    registry = loading.current()
    wanted = [registry.job(job)] if job is not None else jobs_of_loaded(registry, str(plugin))
    with ledger(statement_timeout_seconds=0) as engine, database.autocommit(engine) as connection:
        refuse_unknown_to_the_fleet(connection, wanted)
        counts = found_orphans.counts(connection, [found.name for found in wanted])
        total = sum(count.runs for count in counts)
        if not total:
            click.echo("no orphans")
            return
        for count in counts:
            click.echo(f"{count.job}: {count.runs} that were {count.was}")
        confirm(f"Take up these {total} runs again?", is_given=yes)
        adopted = sum(adopt_all(engine, found, by) for found in wanted)
    click.echo(f"adopted {adopted}")


def jobs_of_loaded(registry: Registry, plugin: str) -> list[Job]:
    """The jobs of a plugin that is loaded here. Raises PluginError."""
    loaded = {found.name: found for found in registry.plugins if found.state == "loaded"}
    if plugin not in loaded:
        raise PluginError(f"plugin {plugin!r} is not loaded here{suggestion(plugin, loaded)}; see `rota plugins`")
    return list(loaded[plugin].jobs)


def refuse_unknown_to_the_fleet(connection: Connection, jobs: list[Job]) -> None:
    """Raise Problem for a job that would be orphaned again at once; nobody needs to be alive."""
    fleet = releases.fleet(connection)
    unknown = [job.name for job in jobs if not fleet.knows(job.name)]
    if unknown and fleet.queues_of:
        raise Problem(f"no process that is alive has {', '.join(unknown)}: restart the workers with the plugin first")


def adopt_all(engine: Engine, job: Job, actor: Actor) -> int:
    """Adopt batch by batch, each with its part of the audit; return how many."""
    total, entry = 0, None
    while True:
        with engine.begin() as connection:
            adopted = len(found_orphans.adopt(connection, job))
            if not adopted:
                return total
            total += adopted
            if entry is None:
                entry = audit.record(connection, actor, "orphans adopt", job.name, runs=total)
            else:
                audit.amend(connection, entry, runs=total)
