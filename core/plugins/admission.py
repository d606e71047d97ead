"""Which installed plugins may be loaded at all, judged by what their packages say; imports none of them."""

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from core.errors import PluginError

#: The distribution that a plugin requires in a certain version.
OURS = "rota"
#: A name is part of the names of tables and of environment variables.
PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: The tables of the ledger begin with it.
RESERVED = {OURS}
EXPECTED_NAME = "lower-case letters, digits and _, a letter first, 40 at most"


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
    """Raise PluginError if another package brings a plugin of the same name.

    Both are refused: which is meant is not ours to guess, and they would share tables.
    """
    namesakes = [other for other in points if other.name == point.name]
    if len(namesakes) > 1:
        packages = " and ".join(sorted(repr(package(other)) for other in namesakes))
        raise PluginError(f"plugin name {point.name!r} is taken by {packages}; uninstall one of them")


def package(point: EntryPoint) -> str:
    """What brought an entry point: its distribution, or where there is none, what it leads to."""
    return point.dist.name if point.dist is not None else point.value


def refuse_newer(distribution: Distribution) -> None:
    """Raise PluginError if the package requires another version of ours; pip does not look with ``--no-deps``."""
    installed = version(OURS)
    for requirement in requirements(distribution):
        if not requirement.specifier.contains(Version(installed), prereleases=True):
            raise PluginError(
                f"{distribution.name} {distribution.version} needs {OURS}{requirement.specifier}, "
                f"and {installed} is installed; upgrade {OURS}, or install a version that fits it"
            )


def requirements(distribution: Distribution) -> Iterable[Requirement]:
    """What the package says of the version of ours that it needs."""
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # pip's to judge
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(requirement.name) == OURS:
            yield requirement
