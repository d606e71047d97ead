"""``rota orphans``: lists runs that ended because no live process had their job, and adopts them."""

import click
from sqlalchemy.orm import Session

from core import database
from core.cli import Group
from core.cli.actor import by_option
from core.cli.confirmation import confirm
from core.cli.environment import configured, ledger, looking
from core.cli.output import as_json, print_json, say
from core.cli.tables import Column, print_table
from core.ledger import history
from core.ledger.audit import Actor
from core.operations import leftovers, plans
from core.operations import orphans as operations
from core.operations.plans import Wanted
from core.operations.wording import local, local_zone
from core.plugins import loading


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.option("--job", metavar="JOB", help="Only runs of this job.")
@click.option("--plugin", metavar="PLUGIN", help="Only runs of this plugin's present or former jobs.")
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
    with looking() as engine, engine.connect() as connection:
        found = operations.found(connection, loading.current(), job=job, plugin=plugin)
        zone = local_zone(history.now(connection))
    if as_json:
        print_json(found)
        return
    rows = [(c.job, str(c.runs), c.was or "", c.reason or "", local(c.last_at)) for c in found.counts]
    columns = (
        Column("job"),
        Column("runs"),
        Column("were", rank=2),
        Column("their plugin is", rank=3),
        Column(f"orphaned ({zone})", rank=1),
    )
    is_narrowed = job is not None or plugin is not None
    print_table(columns, rows, empty="no orphans match" if is_narrowed else "no orphans")


@orphans.command()
@click.argument("job", required=False)
@click.option("--plugin", metavar="PLUGIN", help="All of this plugin's jobs.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
def adopt(job: str | None, plugin: str | None, yes: bool, by: Actor) -> None:
    """Adopt the orphans of JOB, or of all jobs of a plugin: restore their former states.

    The jobs must be loaded here and in a live process. A run that was waiting waits again, and runs even if its slot is
    old. A run that was dead is dead again.

    \b
      rota orphans adopt close-day
      rota orphans adopt --plugin billing --yes
    """
    if (job is None) == (plugin is None):
        raise click.UsageError("name a job, or a plugin with --plugin")
    with ledger(statement_timeout_seconds=0) as engine:
        with database.autocommit(engine) as connection:
            wanted = operations.adoptable(connection, loading.current(), job=job, plugin=plugin)
            counts = operations.counts(connection, wanted)
        if not counts:
            say("no orphans")
            return
        for count in counts:
            say(f"{count.job}: {count.runs} runs that were {count.was}")
        confirm(f"Adopt these {sum(count.runs for count in counts)} runs?", is_given=yes)
        adopted = sum(operations.adopt(engine, found, by) for found in wanted)
    say(f"adopted {adopted}")


@orphans.command()
@as_json
def messages(as_json: bool) -> None:
    """List old messages and results in Redis that are of no use any more.

    The job clean-redis removes them every day, and when a worker has started, but keeps dead letters of jobs that are
    known. This command changes nothing.

    \b
      rota orphans messages
      rota orphans messages --json
    """
    with looking() as engine, engine.connect() as connection:
        found = leftovers.listed(connection, loading.current(), configured())
    if as_json:
        print_json(found)
        return
    if not found.is_used:
        say("Redis is not used: SCHEDULER_MODE=local")
        return
    rows = [(str(c.kind), c.queue, c.job, str(c.messages)) for c in found.counts]
    empty = f"no leftovers older than {found.older_than_hours:g} hours"
    print_table((Column("why"), Column("queue"), Column("job", rank=1), Column("messages")), rows, empty=empty)
    if not found.is_complete:
        say("the search was not complete; there may be more")
    if found.no_text:
        say(f"{found.no_text} keys and ids are left alone, since they are not UTF-8 or contain a NUL")


@orphans.command()
@click.option("--full", is_flag=True, help="Also old dead letters, which people may want to read.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
@as_json
def clean(full: bool, yes: bool, by: Actor, as_json: bool) -> None:
    """Remove old messages and results of no use from Redis. A worker does it, in the background.

    The job clean-redis does the same every day, without --full. `rota operations` shows the progress.

    \b
      rota orphans clean
      rota orphans clean --full
    """
    with ledger() as engine, Session(engine) as session:
        wanted = Wanted("cleanup", is_full=full)
        plan = plans.make(session.connection(), loading.current(), configured(), wanted, by)
        session.commit()
        if not as_json:
            for kind, count in plan.by_job.items():
                say(f"{kind}: {count}")
        confirm(f"Remove these {plan.total} leftovers?", is_given=yes, word=plan.confirm.phrase or "")
        done = plans.execute(session, plan.id, by, digest=plan.digest, typed=plan.confirm.phrase)
        session.commit()
    if as_json:
        print_json(done)
    else:
        say(f"operation {done.id} removes them; see `rota operations show {done.id}`")
