"""Reads spans of time on the command line. An invalid time is wrong usage."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import click

from core.errors import BadTime
from core.operations import times


class Span(click.ParamType[timedelta]):
    """A span of time on the command line."""

    name = "span"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            found = times.span(value)
        except (ValueError, OverflowError):
            found = timedelta()
        if not found:
            self.fail(f"{value!r} is not a span of time; expected a span such as 30m, 2h or 1d12h", param, ctx)
        return found


@contextmanager
def read() -> Iterator[None]:
    """Turn BadTime in the block into wrong usage of its option."""
    try:
        yield
    except BadTime as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.option}") from None
