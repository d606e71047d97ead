"""Prints sentences for people and JSON for programs; ``core/cli/tables.py`` prints tables."""

import json
from collections.abc import Sequence

import click

from core.observability.terminal_text import visible
from core.operations.json_shape import Shape, jsonable

#: The option of every command that lists something.
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def say(*sentences: str, mark: str = "", err: bool = False) -> None:
    """Print each of ``sentences`` on its own line, after ``mark``.

    Control characters in ``sentences`` are made visible. ``mark`` is printed unchanged, since it may have a colour.
    """
    write("\n".join(f"{mark}{visible(sentence)}" for sentence in sentences), err=err)


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    say(f"rota: {sentence}", err=True)


def print_json(answer: Shape | Sequence[Shape]) -> None:
    """Print ``answer`` as JSON."""
    write(json.dumps(jsonable(answer), indent=2, ensure_ascii=False))


def write(text: str, *, err: bool = False) -> None:
    """Print ``text`` unchanged."""
    click.echo(text, err=err)
