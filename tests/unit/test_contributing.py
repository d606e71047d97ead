"""The files that only a forge, an editor or a hook reads: their syntax is valid, and the commands in them exist."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted({*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")} - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
PAGES = [
    ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "tests/README.md", ".github/pull_request_template.md")
]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)\)")


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    return {name: job for path in WORKFLOWS for name, job in parsed(path)["jobs"].items()}


def commands() -> list[str]:
    """Return all commands of the workflows and of ``.ci/run``."""
    steps = chain.from_iterable(job["steps"] for job in jobs().values())
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    return [step["run"] for step in steps if "run" in step] + [
        line for line in script if line.startswith(("make", ".ci"))
    ]


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]), ids=str
)
def test_it_parses(path):
    assert isinstance(parsed(path), dict)


@pytest.mark.parametrize("command", commands())
def test_what_ci_runs_is_there(command):
    program, *words = command.split()

    if program == "make":
        assert words[0] in TARGETS
        assert all(re.search(rf"^{word.partition('=')[0]} \?= ", MAKEFILE, re.MULTILINE) for word in words[1:])
    else:
        assert (ROOT / program).stat().st_mode & 0o111 == 0o111


def test_ci_runs_every_kind_of_test():
    scripts = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.y*ml")]

    ran = {target for script in scripts for target in re.findall(r"\bmake (\w+)", script.read_text())}
    assert ran >= {"test", "lowest", "servers"}
    (parts,) = re.findall(r"^test: (.*?)  ##", MAKEFILE, re.MULTILINE)
    assert parts.split() == ["check", "integration", "conformance", "crash", "faults"]


def test_ci_has_the_oldest_and_the_newest_python_that_the_image_and_the_project_name():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    (newest,) = set(re.findall(r"^FROM python:(3\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))

    pythons = jobs()["test"]["strategy"]["matrix"]["python"]
    served = [pair["python"] for pair in jobs()["servers"]["strategy"]["matrix"]["include"]]
    assert oldest == pythons[0] == served[0]
    assert max(map(Version, pythons)) == max(map(Version, served)) >= Version(newest)


def test_the_oldest_servers_in_ci_are_those_that_the_documentation_promises():
    page = (ROOT / "docs" / "deployment.md").read_text()
    oldest = jobs()["servers"]["strategy"]["matrix"]["include"][0]

    assert f"Redis {oldest['redis']} or newer" in page
    assert f"{oldest['postgres']} works" in page


def test_every_variable_of_the_matrix_is_used():
    for name, job in jobs().items():
        matrix = job.get("strategy", {}).get("matrix", {})
        declared = set(matrix) - {"include"} | {key for pair in matrix.get("include", []) for key in pair}
        assert declared == set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", str(job))), name


def test_the_hooks_are_the_commands_of_make_check():
    (repo,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]}
    recipe = MAKEFILE[MAKEFILE.index("\ncheck:") + 1 :].partition("\n\n")[0]
    checked = {line.strip().replace("$(BIN)", ".venv/bin").split(" --check")[0] for line in recipe.splitlines()[1:]}

    assert repo["repo"] == "local"
    assert all(hook["language"] == "system" for hook in repo["hooks"])
    assert entries == {line.removesuffix(" .") for line in checked if "pytest" not in line}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_the_forge_demands(path):
    form = parsed(path)
    fields = [part for part in form["body"] if part["type"] != "markdown"]

    assert {"name", "description", "body"} <= set(form)
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_pages_name_targets_and_files_that_are_there(path):
    text = path.read_text()

    assert set(re.findall(r"`make ([a-z]+)", text)) <= TARGETS
    for target in LINK.findall(text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_folder_of_tests_is_described():
    text = (ROOT / "tests" / "README.md").read_text()
    folders = {path.parent for path in (ROOT / "tests").glob("*/*.py")}

    assert {folder.name for folder in folders} == set(re.findall(r"^\| `(\w+)/`", text, re.MULTILINE))


# Lower bounds


def bounds(project: dict[str, Any]) -> list[Requirement]:
    lines = chain(project["dependencies"], *project.get("optional-dependencies", {}).values())
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "rota"]


@pytest.mark.parametrize("requirement", bounds(PROJECT), ids=lambda requirement: requirement.name)
def test_a_dependency_has_a_lower_bound_that_make_lowest_can_install_and_no_upper_one(requirement):
    (bound,) = requirement.specifier

    assert bound.operator == ">="
    pinned = {name.lower().replace("_", "-"): version for name, version in CONSTRAINTS.items()}
    assert Version(bound.version) <= Version(pinned[requirement.name.lower()])


def test_the_lowest_versions_are_the_bounds():
    command = [sys.executable, ROOT / ".ci" / "lowest.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = dict(line.split("==") for line in done.stdout.split())

    assert printed == {requirement.name: next(iter(requirement.specifier)).version for requirement in bounds(PROJECT)}


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").glob("*/pyproject.toml")), ids=lambda path: path.parent.name)
def test_a_plugins_bounds_are_those_of_rota(path):
    ours = {requirement.name: requirement.specifier for requirement in bounds(PROJECT)}
    theirs = bounds(tomllib.loads(path.read_text())["project"])

    assert {requirement.name: requirement.specifier for requirement in theirs}.items() <= ours.items()
