"""A line on the terminal that turns while something goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


@contextmanager
def spinning() -> Iterator[Callable[[str], None]]:
    """Show on stderr the line that was last handed in."""
    with Console(stderr=True).status("") as status:
        yield lambda line: status.update(escape(line))
