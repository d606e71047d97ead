"""The examples: each is built as a wheel, installed by pip into an environment of its own, and tested there."""

import json
import shutil
from pathlib import Path

import pytest

from core.settings import plugin_prefix
from tests.support.wheels import ROOT, Environment, build

#: For each example, a misspelt setting without the prefix of the plugin.
MISSPELT = {"uptime": "TIMEOUT_SECOND"}
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/pyproject.toml"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_it_is_built_installed_tested_and_loaded(tmp_path: Path, example: Path):
    source = shutil.copytree(example, tmp_path / example.name, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    environment = Environment(tmp_path / "venv")
    environment.install(build(source, tmp_path / "wheels"))

    tested = environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=source / "tests")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    found = {plugin["name"]: plugin for plugin in json.loads(environment.run("rota", "plugins", "--json").stdout)}
    assert (found[example.name]["state"], found[example.name]["error"]) == ("loaded", None)

    wrong = {plugin_prefix(example.name) + MISSPELT[example.name]: "1"}
    found = json.loads(environment.run("rota", "plugins", "--json", **wrong).stdout)
    assert "is not a setting" in next(plugin for plugin in found if plugin["name"] == example.name)["error"]
