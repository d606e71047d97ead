"""``rota new-plugin``: the package that it writes can be built, installed, tested, used and removed without changes."""

import json
import os
import py_compile
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.cli import main
from tests.support.wheels import ROOT, Environment, build


@pytest.fixture
def rota(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["new-plugin", *words], catch_exceptions=False)


def jobs(environment: Environment) -> set[str]:
    return {job["name"] for job in json.loads(environment.run("rota", "jobs", "--json").stdout)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_built_installed_tested_and_uninstalled_as_written(rota, tmp_path):
    assert rota("lost_notes").exit_code == 0
    environment = Environment(tmp_path / "venv")
    environment.install(build(tmp_path / "lost_notes", tmp_path / "wheels"))

    tested = environment.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "lost_notes" / "tests"
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "6 passed" in tested.stdout
    assert "lost-notes-forget-notes" in jobs(environment)

    environment.uninstall("rota-lost-notes")
    assert "lost-notes-forget-notes" not in jobs(environment)


@pytest.mark.parametrize("name", ["b", "billing", "a_b_c", "x1_2", "trailing_"])
def test_whatever_the_name_every_file_is_sound(rota, tmp_path, name):
    assert rota(name).exit_code == 0

    files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) == 11
    for path in files:
        assert "$" not in path.read_text()
        if path.suffix == ".py":
            py_compile.compile(str(path), doraise=True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Billing", "must be a letter, then letters"),
        ("../billing", "must be a letter, then letters"),
        ("rota", "tables of that name are Rota's own"),
        ("core", "is installed already"),
        ("customer_service", "is installed already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_written(rota, tmp_path, name, problem):
    done = rota(name)

    assert done.exit_code == 1
    assert problem in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(rota, tmp_path):
    kept = tmp_path / "billing" / "README.md"
    kept.parent.mkdir()
    kept.write_text("mine")

    done = rota("billing")

    assert done.exit_code == 1
    assert "billing is not empty" in done.stderr
    assert [path.name for path in kept.parent.iterdir()] == ["README.md"]
    assert kept.read_text() == "mine"


def test_another_folder_can_be_named(rota, tmp_path):
    assert rota("billing", "--directory", "elsewhere/deep").exit_code == 0
    assert Path("elsewhere/deep/pyproject.toml").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(rota, tmp_path):
    (tmp_path / "file").write_text("")

    done = rota("billing", "--directory", "file/billing")

    assert done.exit_code == 1
    assert "cannot be written: Not a directory" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_walk_of_the_documentation_goes_as_it_is_told(tmp_path, environment):
    section = (ROOT / "docs" / "plugins.md").read_text().partition("## From nothing to a running wheel\n")[2]
    commands, told = blocks(section.partition("\n## ")[0], "sh"), blocks(section.partition("\n## ")[0], "text")
    walked = Environment(tmp_path / "venv")
    first = walked.run("python", "-c", RECORD)
    assert first.returncode == 0, first.stderr
    script = tmp_path / "walk.sh"
    script.write_text("set -euo pipefail\n" + "".join(commands))

    environ = {**os.environ, **OFFLINE, "PATH": f"{walked.bin}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=250, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    said = (done.stdout + done.stderr).splitlines()
    lines = "".join(told).splitlines()
    assert len(lines) == 7
    shown = [" ".join(one.split()) for one in said]  # in a pipe, tabs separate the cells
    assert not [line for line in lines if not any(one.startswith(" ".join(line.split())) for one in shown)], (
        done.stdout + done.stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_plugin_of_the_readme_goes_as_it_is_told(tmp_path, environment):
    """The test takes files and commands from the README, and runs a service beside them, as `make run` does."""
    section = (ROOT / "README.md").read_text().partition("## Write a plugin in five minutes\n")[2].partition("\n## ")[0]
    for body in blocks(section, "toml") + blocks(section, "python"):
        path = tmp_path / "rota-reminders" / body.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    install, use = blocks(section, "sh")
    walked = Environment(tmp_path / "venv")
    environ = {**os.environ, **OFFLINE, "PATH": f"{walked.bin}{os.pathsep}{os.environ['PATH']}"}

    def bash(commands: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path / "rota-reminders", env=environ, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = bash(install)
    assert "1 passed" in told
    assert "send-due-reminders" in told
    bash("rota db upgrade")
    environ["SCHEDULER_MODE"] = "local"
    with subprocess.Popen([walked.bin / "rota", "worker", "--threads", "2"], cwd=tmp_path, env=environ) as service:
        try:
            assert len(bash(use).split()) == 2  # the ids of two runs that succeeded
        finally:
            service.terminate()


def blocks(text: str, language: str) -> list[str]:
    """Return the bodies of the fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


#: pip reads this variable in reverse: build isolation is off, since it would download setuptools.
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "ROTA_METRICS_PORT": "0",
}
#: Records a release with the jobs that are installed here, so that ``rota diff`` can compare.
RECORD = """
from core import database
from core.ledger import releases
from core.plugins import loading
with database.autocommit(database.engine()) as connection:
    releases.record(connection, releases.of(loading.current()))
"""
