"""The distributions of this repository, as their pyproject.toml files describe them: Rota, and each plugin."""

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.wheels import CORE, PLUGINS, ROOT

#: Distributions whose modules have other names.
DISTRIBUTIONS = {"core": "rota", "email_validator": "email-validator"}


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def required(folder: Path) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in read(folder)["project"]["dependencies"]}


def extra(name: str) -> set[str]:
    """Return the requirements of Rota's extra of this name, or nothing if there is no such extra."""
    return {
        canonicalize_name(Requirement(line).name)
        for line in read(CORE)["project"]["optional-dependencies"].get(name, [])
    }


def test_rota_ships_the_core_alone():
    project = read(CORE)

    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["core*"]
    assert "entry-points" not in project["project"]


def test_every_plugin_is_a_distribution_and_none_owns_the_namespace():
    folders = {path.parent for path in (ROOT / "plugins").glob("*/__init__.py")}

    assert set(PLUGINS) == folders
    assert len(PLUGINS) == 5
    assert not (ROOT / "plugins" / "__init__.py").exists()


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
class TestPlugin:
    def test_it_brings_one_plugin_under_the_name_of_its_folder(self, folder):
        project = read(folder)["project"]
        points = project["entry-points"]["rota.plugins"]

        assert project["name"] == f"rota-{folder.name.replace('_', '-')}"
        assert project["version"] == read(CORE)["project"]["version"]
        assert project["requires-python"] == read(CORE)["project"]["requires-python"]
        assert list(points) == [folder.name]
        assert points[folder.name].startswith(f"plugins.{folder.name}:")

    def test_it_ships_every_package_below_its_folder(self, folder):
        packages = {path.parent for path in folder.rglob("*.py") if "build" not in path.parts}

        assert set(read(folder)["tool"]["setuptools"]["packages"]) == {
            ".".join(package.relative_to(ROOT).parts) for package in packages
        }

    def test_it_requires_what_it_imports(self, folder):
        ours = {*sys.stdlib_module_names, "plugins"}
        modules = {name for path in folder.rglob("*.py") for name in imported(path)} - ours

        assert required(folder) == {DISTRIBUTIONS.get(module, module) for module in modules}

    def test_its_lower_bounds_are_those_of_rota(self, folder):
        """``make lowest`` tests the lower bounds of Rota."""
        project = read(CORE)["project"]
        extras = project["optional-dependencies"].get(folder.name, [])
        lines = {*project["dependencies"], *extras, f"rota>={project['version']}"}

        assert set(read(folder)["project"]["dependencies"]) <= lines

    def test_it_requires_nothing_that_rota_does_not(self, folder):
        """The image installs the requirements of Rota and of the extras of its plugins, and installs the plugins
        with ``--no-deps``.
        """
        assert required(folder) - {"rota"} <= required(CORE) | extra(folder.name)


def imported(path: Path) -> set[str]:
    """Return the top-level modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_make_installs_them_all_at_once_and_again_when_one_changes():
    makefile = (ROOT / "Makefile").read_text()

    assert "PLUGINS := $(wildcard plugins/*/pyproject.toml)" in makefile
    assert "$(READY): pyproject.toml $(CONSTRAINTS) $(PLUGINS)" in makefile
    assert "$(call install,$(PLUGINS:%/pyproject.toml=-e ./%))" in makefile


def test_the_image_has_them_all():
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert f"pip install --no-deps . {' '.join(f'./plugins/{folder.name}' for folder in PLUGINS)} " in dockerfile
