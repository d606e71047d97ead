"""Prints the lowest version of every dependency that pyproject.toml allows, as constraints for pip."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
    requirement = Requirement(line)
    if requirement.name != PROJECT["name"]:
        (bound,) = requirement.specifier
        print(f"{requirement.name}=={bound.version}")  # noqa: T201 — this is what it is for
