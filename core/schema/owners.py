"""Finds the plugin that a table belongs to."""

from collections.abc import Collection


def owner_of(table: str, names: Collection[str]) -> str | None:
    """Return the plugin whose name the table's name begins with.

    If two plugins' names match, return the plugin with the longer name.
    """
    return max((name for name in names if table.startswith(f"{name}_")), key=len, default=None)
