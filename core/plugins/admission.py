"""Checks from a package's metadata whether an installed plugin may be loaded. Does not import the plugin."""

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from core.errors import PluginError

#: The distribution whose version a plugin's package may require.
OURS = "rota"
#: The form of a plugin's name, which is part of the names of its tables and environment variables.
PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: The names that no plugin may have, since the names of the ledger's tables begin with them.
RESERVED = {OURS}
EXPECTED_NAME = "a letter, then letters, digits and _, all lower-case, at most 40"


def require(point: EntryPoint, points: Iterable[EntryPoint]) -> None:
    """Raise PluginError unless the plugin of ``point``, one of ``points``, may be loaded."""
    refuse_bad_name(point.name)
    refuse_namesakes(point, points)
    if point.dist is not None:
        refuse_newer(point.dist)


def refuse_bad_name(name: str) -> None:
    """Raise PluginError for a name that cannot begin the names of tables."""
    if name in RESERVED:
        raise PluginError(f"plugin name {name!r} is taken: tables of that name are Rota's own")
    if not PLUGIN_NAME.fullmatch(name):
        raise PluginError(f"plugin name {name!r} must be {EXPECTED_NAME}; it is the entry point's name in its package")


def refuse_namesakes(point: EntryPoint, points: Iterable[EntryPoint]) -> None:
    """Raise PluginError if another package has a plugin of the same name.

    Both plugins are refused, since it is unknown which of them is meant, and they would share tables.
    """
    namesakes = [other for other in points if other.name == point.name]
    if len(namesakes) > 1:
        packages = " and ".join(sorted(repr(package(other)) for other in namesakes))
        raise PluginError(f"plugin name {point.name!r} is taken by {packages}; uninstall one of them")


def package(point: EntryPoint) -> str:
    """Return the distribution of an entry point.

    If the entry point has no distribution, return the object that it names.
    """
    return point.dist.name if point.dist is not None else point.value


def refuse_newer(distribution: Distribution) -> None:
    """Raise PluginError if the package requires another version of Rota. ``pip --no-deps`` does not check this."""
    installed = version(OURS)
    for requirement in requirements(distribution):
        if not requirement.specifier.contains(Version(installed), prereleases=True):
            raise PluginError(
                f"{distribution.name} {distribution.version} needs {OURS}{requirement.specifier}, "
                f"and {installed} is installed; upgrade {OURS}, or install another version of {distribution.name}"
            )


def requirements(distribution: Distribution) -> Iterable[Requirement]:
    """Return the package's requirements on Rota's version."""
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # pip checks these requirements
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(requirement.name) == OURS:
            yield requirement
