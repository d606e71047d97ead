"""How commands print: sentences for people, JSON for programs. Tables stand in ``core/cli/tables.py``."""

import json
from collections.abc import Sequence

import click

from core.observability.visible import visible
from core.operations.shape import Shape, jsonable

#: The option that every listing has.
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def say(*sentences: str, mark: str = "", err: bool = False) -> None:
    """Print each of ``sentences`` on a line of its own, whatever is in it; ``mark`` goes before, styled as it is."""
    write("\n".join(f"{mark}{visible(sentence)}" for sentence in sentences), err=err)


def warn(sentence: str) -> None:
    """Say something beside the answer, on stderr."""
    say(f"rota: {sentence}", err=True)


def print_json(answer: Shape | Sequence[Shape]) -> None:
    """Print ``answer``, exactly as it is."""
    write(json.dumps(jsonable(answer), indent=2, ensure_ascii=False))


def write(text: str, *, err: bool = False) -> None:
    """Print ``text`` as it is."""
    click.echo(text, err=err)
