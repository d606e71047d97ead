"""The files that no test runs: docker-compose.yml, Dockerfile, Makefile and constraints.txt."""

import re
import shlex
import subprocess
import sysconfig
import tomllib
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import settings
from core.cli import COMMANDS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "rota"}
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()

#: Environment variables of the images that are not ours.
FOREIGN = {
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "redis": {"REDISCLI_AUTH"},
}
#: Names of hosts and folders of the machine on which this was written. The files must not contain them.
TELLING = re.compile(
    r"pypi\.|pythonhosted|index-url|extra-index|find-links|artifactory|nexus|devpi|/opt/pypi|/root/|/home/|/work/(?!dir)"
)


def span(words: str) -> float:
    """Return a duration of Compose, such as ``75s``, in seconds."""
    match = re.fullmatch(r"(\d+)(s|m)", words)
    assert match, words
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


class TestCompose:
    def test_has_every_role(self):
        assert set(SERVICES) == {"postgres", "redis", "migrate", "worker", "scheduler", "web"}
        assert set(OURS) == {"migrate", "worker", "scheduler", "web"}

    @pytest.mark.parametrize("name", SERVICES)
    def test_every_variable_is_a_setting(self, name):
        variables = set(SERVICES[name]["environment"])

        assert variables <= (set(settings.names()) if name in OURS else FOREIGN[name])

    @pytest.mark.parametrize("name", OURS)
    def test_ours_are_told_where_everything_is(self, name):
        environment = OURS[name]["environment"]

        settings.load(
            {variable: re.sub(r"\$\{\w+:-(\w+)\}|\$\{.*?\}", r"\1", v) for variable, v in environment.items()}
        )
        assert {"DATABASE_URL", "REDIS_URL"} <= set(environment)

    @pytest.mark.parametrize("name", OURS)
    def test_every_command_exists(self, name):
        assert_exists(OURS[name]["command"])
        if "healthcheck" in OURS[name]:
            assert_exists(OURS[name]["healthcheck"]["test"][1:])

    def test_no_password_is_written_down(self):
        text = (ROOT / "docker-compose.yml").read_text()

        for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "ROTA_WEB_TOKEN"):
            assert set(re.findall(rf"\$\{{{name}\W.", text)) == {f"${{{name}:?"}

    @pytest.mark.parametrize("name", SERVICES)
    def test_dependencies_and_volumes_are_declared(self, name):
        service = SERVICES[name]

        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how["condition"] in {"service_healthy", "service_completed_successfully"}
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert named <= set(COMPOSE["volumes"])

    @pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
    def test_what_goes_on_is_restarted_and_watched(self, name):
        assert SERVICES[name]["restart"] == "unless-stopped"
        assert {"test", "interval", "timeout", "retries"} <= set(SERVICES[name]["healthcheck"])

    @pytest.mark.parametrize("name", OURS)
    def test_ours_have_an_init_and_no_privileges(self, name):
        assert OURS[name]["init"] is True
        assert OURS[name]["user"] == "rota"
        assert OURS[name]["cap_drop"] == ["ALL"]

    def test_the_worker_is_given_longer_than_its_jobs_are(self):
        command = OURS["worker"]["command"]
        grace_seconds = int(command[command.index("--grace") + 1])

        assert span(OURS["worker"]["stop_grace_period"]) > grace_seconds

    def test_the_worker_shows_the_port_of_its_metrics(self):
        assert OURS["worker"]["expose"] == [OURS["worker"]["environment"]["ROTA_METRICS_PORT"]]
        assert OURS["worker"]["environment"]["ROTA_METRICS_HOST"] == "0.0.0.0"
        assert "ports" not in OURS["worker"]

    def test_the_http_service_can_be_reached_from_this_machine_alone(self):
        web = OURS["web"]

        port = web["environment"]["ROTA_WEB_PORT"]
        assert web["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert web["environment"]["ROTA_WEB_HOST"] == "0.0.0.0"
        assert {"ROTA_WEB_TOKEN"} <= set(web["environment"])  # without a token, `rota web` does not start

    def test_the_image_has_what_the_http_service_needs(self):
        assert "p['optional-dependencies']['web']" in "\n".join(DOCKERFILE)

    def test_redis_keeps_what_it_has(self):
        command = " ".join(SERVICES["redis"]["command"])

        assert "--appendonly yes" in command
        assert "--maxmemory-policy noeviction" in command


def assert_exists(words: list[str]) -> None:
    """Check that the program is part of Rota or of a dependency, and that a subcommand of ``rota`` exists."""
    program, *rest = words
    assert program in {point.name for point in entry_points(group="console_scripts")}, program
    if program == "rota":
        assert rest[0] in COMMANDS
        command = [f"{sysconfig.get_path('scripts')}/{program}", *rest, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert rest[0] == "core.main"


class TestDockerfile:
    def lines(self, instruction: str) -> list[str]:
        return [line.partition(" ")[2].strip() for line in DOCKERFILE if line.startswith(f"{instruction} ")]

    def test_the_python_is_one_that_we_support(self):
        least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))

        for image in self.lines("FROM"):
            match = re.match(r"python:(\d+)\.(\d+)-slim", image)
            assert match, image
            assert (int(match[1]), int(match[2])) >= least

    def test_copies_only_what_is_there_and_what_dockerignore_lets_through(self):
        let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

        for line in self.lines("COPY"):
            if not line.startswith("--from"):
                sources = line.split()[:-1]
                assert set(sources) <= let_through
                assert all((ROOT / source).exists() for source in sources)

    def test_the_dependencies_are_a_layer_before_the_code(self):
        text = "\n".join(DOCKERFILE)

        assert text.index("pip install -r requirements.txt") < text.index("COPY core")

    def test_nothing_runs_as_root_and_no_build_tools_are_left(self):
        last_stage = "\n".join(DOCKERFILE).rpartition("\nFROM ")[2]

        assert "\nUSER rota" in last_stage
        assert "pip install" not in last_stage
        assert "apt-get" not in last_stage
        assert "pip uninstall --yes pip" in "\n".join(DOCKERFILE)

    def test_its_command_exists(self):
        (command,) = self.lines("CMD")

        assert_exists(yaml.safe_load(command))


class TestMakefile:
    def test_has_the_targets_that_are_promised(self):
        targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
        (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)

        tests = {"check", "test", "integration", "conformance", "crash", "faults", "lowest", "servers"}
        promised = {"run", "bench", "clean", "help"} | tests
        assert promised == targets == set(phony.split())

    def test_help_is_what_a_bare_make_prints(self):
        done = subprocess.run(["make", "--directory", str(ROOT)], capture_output=True, text=True, check=False)

        assert done.returncode == 0
        assert all(f"make {target}" in done.stdout for target in ("run", "check", "test", "crash", "bench", "clean"))

    def test_what_it_starts_beside_rota_up_can_be_imported(self):
        also = re.findall(r'--also "\$\(BIN\)/python -m ([\w.]+)"', MAKEFILE)

        assert len(also) == MAKEFILE.count("--also")
        assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in also)

    def test_ci_calls_make(self):
        script = ROOT / ".ci" / "run"

        assert script.stat().st_mode & 0o111 == 0o111
        assert "set -euo pipefail" in script.read_text()
        assert next(line for line in script.read_text().splitlines() if line.startswith("make ")) == "make test"


class TestConstraints:
    def test_every_line_is_a_name_and_a_version(self):
        for line in CONSTRAINTS:
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line

    def test_covers_what_we_depend_on(self):
        pinned = {normal(line.partition("==")[0]) for line in CONSTRAINTS}
        wanted = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]

        named = {normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in wanted}
        assert named - {"rota"} <= pinned


def normal(name: str) -> str:
    """Return the name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_registry_or_a_folder_of_a_machine():
    told = []
    for path in tracked():
        if path == Path(__file__).relative_to(ROOT):
            continue  # this file contains the text that it searches for
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        told += [f"{path}: {match[0]}" for match in TELLING.finditer(text)]

    assert not told


def tracked() -> list[Path]:
    """Return the files that git tracks, or would track after the next commit."""
    command = shlex.split("git ls-files --cached --others --exclude-standard -z")
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listing.split("\0") if name and (ROOT / name).is_file()]
