"""``Command``: a command of ``rota`` that a plugin adds. Its module is imported only when the command is used."""

import re
from dataclasses import dataclass

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
#: The names of Rota's own commands, including planned commands.
OWN = frozenset(
    {
        *("actions", "audit", "backup", "batch", "batches", "cancel", "check", "db", "diff", "drop", "jobs", "limits"),
        *(
            "new-plugin",
            "operations",
            "orphans",
            "pause",
            "pauses",
            "plugins",
            "restore",
            "result",
            "resume",
            "retry",
            "run",
            "runs",
        ),
        *("schedules", "sessions", "status", "tokens", "up", "web", "why", "worker", "workers"),
    }
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a plugin, for the hook ``register_commands``.

    ``place`` names a click command or group as ``package.module:name``. ``line`` describes the command in ``rota
    --help``.
    """

    name: str
    place: str
    line: str


def problem(command: object) -> str:
    """Return why a plugin may not add ``command``, or an empty text if it may."""
    if not isinstance(command, Command):
        return f"{command!r}, which is not a Command"
    if not isinstance(command.name, str) or not NAME.fullmatch(command.name):
        return f"the command {command.name!r}; expected at most 40 lower-case letters, digits and -"
    if command.name in OWN:
        return f"the command {command.name!r}, which is Rota's own"
    if not isinstance(command.place, str) or not PLACE.fullmatch(command.place):
        return f"the command {command.name!r} at {command.place!r}; expected a place such as 'billing.commands:billing'"
    if not isinstance(command.line, str) or not command.line.strip() or not command.line.isprintable():
        return f"the command {command.name!r} with the line {command.line!r}; expected printable text"
    return ""
