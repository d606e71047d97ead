"""Wheels of the distributions of this repository, and editable installs of several of them in one namespace."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.wheels import CORE, PLUGINS, ROOT, Environment, wheel_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
#: Files in a distribution's folder that are not part of its package.
ABOUT = {"pyproject.toml", "README.md"}


def tracked(folder: Path) -> set[str]:
    """Return the files of a folder that git tracks, or would track after the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", str(folder.relative_to(ROOT))]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listing.splitlines() if (ROOT / name).exists()}


def shipped(wheel: Path) -> set[str]:
    """Return the files in a wheel without pip's metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_of_rota_has_the_core_and_nothing_else():
    assert shipped(wheel_of(CORE)) == tracked(ROOT / "core")


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_the_wheel_of_a_plugin_has_its_folder_and_nothing_else(folder):
    code = {name for name in tracked(folder) if Path(name).name not in ABOUT}

    assert shipped(wheel_of(folder)) == code
    assert any("/migrations/0" in name for name in code)


def test_rota_alone_has_no_marketplace_and_each_plugin_comes_and_goes_by_itself(tmp_path):
    environment = Environment(tmp_path / "venv")
    assert listed(environment) == {"core": "loaded"}

    environment.install(*map(wheel_of, PLUGINS))
    names = {folder.name for folder in PLUGINS}
    assert listed(environment) == dict.fromkeys({"core", *names}, "loaded")

    for name in sorted(names):
        environment.uninstall(f"rota-{name.replace('_', '-')}")
        names.remove(name)
        assert listed(environment) == dict.fromkeys({"core", *names}, "loaded")


def listed(environment: Environment) -> dict[str, str]:
    """Return the states of the plugins that ``rota plugins`` shows in an environment."""
    told = environment.run("rota", "plugins", "--json")
    assert told.returncode == 0, told.stderr
    return {plugin["name"]: plugin["state"] for plugin in json.loads(told.stdout)}


@pytest.mark.parametrize("folder", [Path("/"), ROOT, ROOT / "plugins"], ids=["elsewhere", "root", "plugins"])
def test_what_make_has_installed_can_be_imported_from_any_folder(folder):
    names = [f"plugins.{plugin.name}" for plugin in PLUGINS]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    program = f"import {', '.join(names)}; print({', '.join(f'{name}.__file__' for name in names)})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(plugin / "__init__.py") for plugin in PLUGINS]
