"""The ``rota`` command. Each command has a short file, which parses the options, calls an operation and prints.

A command's file is imported only when that command is used. To find the commands of plugins, the plugins are loaded for
``rota --help`` and for a name that is not in ``COMMANDS``. Exit status: 0 if the command succeeded, 1 if the answer is
no or something is wrong, 2 for wrong usage.
"""

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from core.errors import RotaError, suggestion

if TYPE_CHECKING:
    from core.jobs.commands import Command
    from core.jobs.registry import Plugin

#: The import path of each command, and its line in the overview.
COMMANDS = {
    "up": ("core.cli.up:up", "Start everything on this machine, and stop it with Ctrl-C."),
    "worker": ("core.cli.worker:worker", "Run jobs in worker processes, which are restarted when they die."),
    "web": ("core.cli.web:web", "Serve the HTTP API."),
    "tokens": ("core.cli.tokens:tokens", "List, make and revoke tokens of the HTTP API."),
    "sessions": ("core.cli.sessions:sessions", "List the browsers that are logged in, and end their sessions."),
    "check": ("core.cli.check:check", "Check that everything Rota needs is installed and reachable."),
    "db": ("core.cli.db:db", "Upgrade the database's tables, or show their revisions."),
    "jobs": ("core.cli.jobs:jobs", "List the jobs, their schedules and their next slots."),
    "plugins": ("core.cli.plugins:plugins", "List the plugins, and whether they were loaded."),
    "runs": ("core.cli.runs:runs", "List the runs in the ledger, newest first."),
    "workers": ("core.cli.workers:workers", "List the live processes with their runs, and those that have left."),
    "retry": ("core.cli.retry:retry", "Retry dead runs, by id or by filter."),
    "drop": ("core.cli.drop:drop", "Drop waiting or dead runs, so that they never run."),
    "cancel": ("core.cli.cancel:cancel", "Cancel waiting or running runs, by id or by filter."),
    "limits": ("core.cli.limits:limits", "List the limits of jobs, with their use and the runs that wait."),
    "pause": ("core.cli.pause:pause", "Stop starting a job, a queue, a plugin or everything for a while."),
    "resume": ("core.cli.resume:resume", "End a pause."),
    "pauses": ("core.cli.pauses:pauses", "List the active pauses, with their authors and reasons."),
    "schedules": ("core.cli.schedules:schedules", "List and change the schedules that keys of jobs have."),
    "audit": ("core.cli.audit:audit", "List the actions of people, newest first."),
    "orphans": ("core.cli.orphans:orphans", "List runs that ended because no process had their job, and adopt them."),
    "operations": ("core.cli.operations:operations", "List, show and cancel operations that change many runs."),
    "diff": ("core.cli.diff:diff", "Show the changes of jobs since the last release that ran."),
    "new-plugin": ("core.cli.new_plugin:new_plugin", "Create a package with a new plugin."),
    "run": ("core.cli.run:run", "Run a job now."),
    "why": ("core.cli.why:why", "Explain why a job did or did not run at a certain time."),
}


class Problem(click.ClickException):
    """An error other than wrong usage. It is printed in one line on stderr, and the exit status is 1."""

    def show(self, file: Any = None) -> None:
        """Print the error as ``rota: …``. Do nothing if stderr cannot be written."""
        from core.observability.terminal_text import visible

        message = "\n".join(visible(line) for line in self.format_message().split("\n"))
        with suppress(OSError):
            click.echo(f"rota: {message}", file=file, err=True)


class Group(click.Group):
    """A group of commands that suggests the nearest command for an unknown name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}{suggestion(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class Commands(Group):
    """Imports a command when it is used, and turns Rota's errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *brought()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return imported(COMMANDS[cmd_name][0])
        plugin, command = brought().get(cmd_name, (None, None))
        if plugin is None or command is None:
            return None
        try:
            return imported(command.place)
        except Exception as error:  # the import runs a plugin's code, which may raise any error
            said = f"{type(error).__name__}: {error}"
            raise Problem(f"plugin {plugin.name!r}: its command {cmd_name!r} cannot be imported: {said}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        if found := brought():
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, command.line) for name, (_, command) in found.items()])

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        from core.cli import unwritable

        with unwritable.told():  # --help and --version print here
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        from core.cli import unwritable

        try:
            with unwritable.told():
                return super().invoke(ctx)
        except RotaError as error:
            raise Problem(str(error)) from error


def imported(place: str) -> click.Command:
    """Return the click command at ``place``, such as ``package.module:name``.

    Raises any error of the import, and TypeError if there is no click command.
    """
    module, _, name = place.partition(":")
    command = getattr(importlib.import_module(module), name)
    if not isinstance(command, click.Command):
        raise TypeError(f"{place} is {command!r}, which is not a click command")
    return command


def brought() -> "dict[str, tuple[Plugin, Command]]":
    """Return the commands of plugins, each with its plugin, or none if the list of disabled plugins is invalid."""
    from core.plugins import loading

    with suppress(RotaError):
        return {command.name: (plugin, command) for plugin, command in loading.current().commands()}
    return {}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rota")
def main() -> None:
    """Rota runs the jobs of its plugins, and accounts for every one of their slots.

    DATABASE_URL and REDIS_URL name the servers. If neither is set, the commands use the servers that `rota up` has
    started in this folder: it writes their URLs to .rota/env.

    \b
      rota up                                   everything on this machine
      rota jobs                                 the jobs and their next slots
      rota runs --job close-day --state dead    its dead runs
      rota why close-day --at 03:00             why did it not run at three?

    Exit status: 0 done; 1 the answer is no, or something is wrong; 2 wrong usage.
    """
