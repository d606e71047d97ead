"""The documentation agrees with the code: every part is described, and the commands and examples in it work."""

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from pydantic import SecretStr

import core
from core.cli import main as rota
from core.jobs.job import Job, job
from core.jobs.run import Run
from core.ledger.models import Base, State
from core.observability.events import EVENTS
from core.plugins import loading
from core.settings import Settings
from docs import events as events_page
from docs.rooms import PICTURE, picture
from tests.test_architecture import LAYERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: Composed so that this file does not contain the forbidden texts.
FORBIDDEN = re.compile(r"/(?:home|root|work|Users)/|py[p]i\.|python[h]osted|arti[f]actory|dev[p]i")
#: Commands of other programs, which are not checked.
OTHERS = {
    ".",
    "git",
    "pip",
    "python",
    "docker",
    "dramatiq",
    "periodiq",
    "systemctl",
    "pg_dump",
    "pg_restore",
    "export",
    "cd",
    "kill",
    "pytest",
    "jq",
    "curl",
}


def page(name: str) -> str:
    """Return the text of a page of the documentation."""
    return (ROOT / "docs" / name).read_text()


def blocks(text: str, *languages: str) -> list[str]:
    """Return the bodies of the fenced blocks in these languages."""
    return [body for language, body in BLOCK.findall(text) if language in languages]


def cells(text: str) -> set[str]:
    """Return the code in the first column of tables."""
    return {code for line in text.splitlines() if line.startswith("| `") for code in first_cell(line)}


def first_cell(line: str) -> list[str]:
    return re.findall(r"`([^`]+)`", line.split(" | ")[0])


class TestSettings:
    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_each_is_described_as_it_is(self, name):
        assert setting_row(name) in page("settings.md").splitlines()

    def test_no_other_is(self):
        assert cells(page("settings.md")) == {str(field.validation_alias) for field in Settings.model_fields.values()}


def setting_row(name: str) -> str:
    """Return the row of a setting in docs/settings.md."""
    field = Settings.model_fields[name]
    default = "required" if field.is_required() else f"`{shown(field.default)}`"
    sentence = (field.description or "").replace("``", "`")
    return f"| `{field.validation_alias}` | {values(name)} | {default} | {sentence} |"


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if default is None or default == "":
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


#: The values of settings that are texts.
WORDS = {
    "web_prefix": "path",
    "web_socket": "file",
    "web_token": "secret",
    "web_proxies": "addresses",
    "web_roles": "groups with roles",
    "web_user_header": "header",
    "web_groups_header": "header",
    "web_url": "URL",
    "oidc_issuer": "URL",
    "oidc_client_id": "id",
    "oidc_client_secret": "secret",
    "oidc_scopes": "names",
    "oidc_groups_claim": "name",
}


def values(name: str) -> str:
    """Return the values of a setting, with the unit."""
    annotation, metadata = Settings.model_fields[name].annotation, Settings.model_fields[name].metadata
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if name in {"disabled_plugins", "redact"}:
        return "names"
    if name in WORDS:
        return WORDS[name]
    if name == "reserved_threads":
        return "queues with numbers of threads"
    unit = {"seconds": "seconds", "days": "days", "size": "connections", "crashes": "workers"}.get(name.split("_")[-1])
    if annotation in (int, float):
        limits = {kind: value for part in metadata for kind, value in bounds(part)}
        least = limits.get("ge", "above 0")
        span = f"{least} to {limits['le']}" if "le" in limits else f"{least} or more" if least == 0 else str(least)
        return f"{unit}, {span}" if unit else span
    return {bool: "`true` or `false`", SecretStr: "URL", SecretStr | None: "URL", str: "address"}.get(
        annotation, "folder"
    )


def bounds(constraint: Any) -> Iterator[tuple[str, Any]]:
    for kind in ("ge", "gt", "le"):
        if getattr(constraint, kind, None) is not None:
            yield kind, getattr(constraint, kind)


class TestMetrics:
    def test_each_is_described_with_its_labels_and_no_other(self):
        described = {
            line.split(" | ")[0].strip("| `"): set(re.findall(r"`(\w+)`", line.split(" | ")[1]))
            for line in page("metrics.md").splitlines()
            if line.startswith("| `")
        }

        assert described == declared_metrics()


def declared_metrics() -> dict[str, set[str]]:
    """Return the labels of each metric by the name that Prometheus reads, from the source."""
    found = {}
    for call in ast.walk(ast.parse((ROOT / "core" / "observability" / "metrics.py").read_text())):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in {"Counter", "Gauge", "Histogram"}:
            name, labels = ast.literal_eval(call.args[0]), call.args[2] if len(call.args) > 2 else None
            suffix = "_total" if call.func.id == "Counter" else ""  # type: ignore[attr-defined]
            found[name + suffix] = set(ast.literal_eval(labels)) if labels is not None else set()
    return found


class TestCommandLine:
    def test_every_command_and_option_is_described(self):
        text = page("operating.md")
        missing = [told for told in all_commands_and_options() if f"`{told}" not in text]

        assert not missing

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_what_is_shown_can_be_typed(self, path):
        wrong = [line for line in shown_commands(path.read_text()) if not is_right(shlex.split(line, comments=True))]

        assert not wrong


def all_commands_and_options() -> Iterator[str]:
    """Yield each command as it is typed, and each option."""
    for words, command in commands_below((), rota):
        yield " ".join(("rota", *words))
        yield from (parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option))


def commands_below(words: tuple[str, ...], group: click.Group) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_below((*words, name), command)
        elif command is not None:
            yield (*words, name), command


def shown_commands(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, and inline code that begins with ``rota`` or ``make``."""
    for block in blocks(text, "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip(" #") and line[0] != "#")
    prose = BLOCK.sub("", text)
    yield from re.findall(r"`((?:rota|make) [^`]+)`", prose)


def is_right(words: list[str]) -> bool:
    """Return whether the command exists."""
    if "rota" in words and words[0] in {"docker", "rota"}:
        return is_rota(words[words.index("rota") + 1 :])
    if words[0] == "make":
        return all(word in make_targets() or "=" in word for word in words[1:])
    return words[0] in OTHERS or "=" in words[0]


def is_rota(words: list[str]) -> bool:
    command: click.Command = rota
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return False
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h", "--version"}
    return all(word.partition("=")[0] in known for word in words if word.startswith("-"))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_commands_of_make_are_described():
    text = README.read_text() + page("operating.md") + page("deployment.md") + page("benchmarks.md")
    assert not [target for target in make_targets() if f"make {target}" not in text]


def test_every_hook_is_described():
    text = page("plugins.md")
    assert not [hook for hook in loading.hooks() if f"`{hook}`" not in text]


@pytest.mark.parametrize("name", core.__all__)
def test_every_public_name_is_described(name):
    assert re.search(rf"`@?{name}\b", page("plugins.md"))


def test_what_applications_call_of_customer_service_is_described():
    from plugins import customer_service

    text = page("plugins.md")
    names = [name for name in customer_service.__all__ if name != "CustomerService"]
    registered = customer_service.CustomerService().register_jobs()

    assert not [name for name in (*names, *(each.name for each in registered)) if f"`{name}" not in text]


def test_every_option_of_a_job_is_described_with_its_default():
    described = [line for line in page("plugins.md").splitlines() if line.startswith("| `")]
    parameters = {name: p for name, p in inspect.signature(job).parameters.items() if name != "name"}
    missing = [name for name in parameters if not any(line.startswith(f"| `{name}`") for line in described)]

    assert not missing
    assert set(parameters) <= set(Job.__dataclass_fields__)


def test_everything_a_run_has_is_described():
    own = {name for name in dir(Run) if not name.startswith("_")} - {"work"}
    missing = [name for name in own if f"`run.{name}" not in page("plugins.md")]

    assert not missing


def test_every_fixture_for_tests_is_described():
    from core import testing

    described = page("plugins.md")
    assert not [name for name in testing.__all__ if f"`{name}" not in described]


@pytest.mark.parametrize("state", State)
def test_every_state_is_described(state):
    assert state.value in cells(page("operating.md"))


def test_every_reason_is_described():
    text = page("operating.md")
    missing = [reason for reason in reasons() if f"`{reason}`" not in text]

    assert len(reasons()) > 8
    assert not missing


def reasons() -> set[str]:
    """Return the reasons that ``rota why`` explains, and those that execution writes."""
    tree = ast.parse((ROOT / "core" / "operations" / "stories.py").read_text())
    tables = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reasons"
    ]
    return {"overlap", *(key.value for table in tables if isinstance(table, ast.Dict) for key in table.keys)}  # type: ignore[union-attr]


def test_the_page_of_events_is_what_their_declarations_say():
    assert page("events.md") == events_page.page(), "run python docs/events.py"


def test_every_event_is_emitted_by_its_class():
    """``run.progress`` is logged by the job's own logger."""
    sources = "".join(path.read_text() for path in (ROOT / "core").rglob("*.py") if path.name != "events.py")
    silent = [declared.name for declared in EVENTS.values() if f"{declared.__name__}(" not in sources]

    assert silent == ["run.progress"]


class TestEventsInTests:
    """Names and fields of events must not change, so a test causes each event and checks it."""

    def test_every_event_is_looked_for_by_its_name_or_its_class(self):
        looked_for = {found for tree in modules_of_tests() for found in names_and_strings(tree)}
        missing = [name for name, declared in EVENTS.items() if not looked_for & {name, declared.__name__}]

        assert not missing

    def test_no_event_is_looked_for_that_is_not_declared(self):
        """A test that expects no event of that name would always pass after the event was renamed."""
        topics = {name.partition(".")[0] for name in EVENTS}
        looked_for = {name for tree in modules_of_tests() for name in looked_for_in_logs(tree)}
        unknown = [name for name in looked_for - EVENTS.keys() if name.partition(".")[0] in topics]

        assert not unknown


def modules_of_tests() -> Iterator[ast.Module]:
    return (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))


def names_and_strings(tree: ast.Module) -> Iterator[str]:
    """Yield the names and strings in code, without imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def looked_for_in_logs(tree: ast.Module) -> Iterator[str]:
    """Yield strings like ``topic.what_happened`` to the left of ``in``, or in calls of ``emitted`` or ``logged``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]).__name__.endswith("In"):
            yield from event_names([node.left])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"emitted", "logged"}:
            yield from event_names(node.args)


def event_names(nodes: Iterable[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z_]+\.[a-z_]+", str(node.value)):
            yield str(node.value)


def test_nothing_in_the_core_words_its_own_lines():
    worded = re.compile(r"""\blog(?:ger)?\.(?:debug|info|warning|error|exception|critical|log)\(""")
    found = {
        str(path.relative_to(ROOT)): worded.findall(path.read_text())
        for path in (ROOT / "core").rglob("*.py")
        if worded.search(path.read_text())
    }

    assert set(found) == {
        "core/jobs/run.py",  # run.progress, by the job's own logger
        "core/observability/events.py",
        "core/transport/redis/broker.py",  # Dramatiq's own texts
    }


def test_every_room_is_described_by_its_own_first_sentence():
    described = dict(re.findall(r"^\| `(core/[\w/.]+)` \| (.+) \|$", page("architecture.md"), re.MULTILINE))

    assert described == dict(rooms())


def rooms() -> Iterator[tuple[str, str]]:
    """Yield each folder and module directly in ``core``, with the first paragraph of its docstring."""
    for path in sorted((ROOT / "core").iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file():
            sentence = (docstring(source) or "").partition("\n\n")[0]
            yield (
                f"core/{path.name}{'/' if path.is_dir() else ''}",
                " ".join(sentence.split()).replace("``", "`"),
            )


def test_every_table_of_the_ledger_is_described():
    described = cells(page("architecture.md")) - {"rota_migrations_…"}

    assert {name for name in described if name.startswith("rota_")} == set(Base.metadata.tables)


def test_every_layer_around_a_run_is_described_in_its_order():
    section = page("architecture.md").partition("## What surrounds each run\n")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)

    assert described == layers_around_runs()


def layers_around_runs() -> list[str]:
    """Return the modules of the layers in ``Executor``'s list ``around_runs``, read from the source."""
    tree = ast.parse((ROOT / "core" / "worker" / "executor.py").read_text())
    modules = {
        alias.name: node.module.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assigned = {node.targets[0].id: node.value for node in ast.walk(tree) if is_assignment(node)}  # type: ignore[attr-defined]
    return [modules[class_of(layer, assigned)] for layer in assigned["around_runs"].elts]


def is_assignment(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)


def class_of(layer: Any, assigned: dict[str, Any]) -> str:
    """Return the name of a layer's class. The list contains a call of the class, or the name of a variable."""
    called = layer if isinstance(layer, ast.Call) else assigned[layer.id]
    return str(called.func.id)


def test_the_picture_of_the_rooms_is_drawn_from_the_imports():
    """The sizes in the picture may differ, since they change with every line of code."""
    drawn, kept = (re.sub(r".*class=\"size\".*\n", "", text) for text in (picture(LAYERS), PICTURE.read_text()))

    assert drawn == kept, "run python docs/rooms.py"


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_of_the_core_says_what_it_is_for(path):
    assert docstring(path)


def docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text()))


class TestInvariants:
    def test_all_eight_are_there(self):
        assert re.findall(r"^## (I\d)\b", page("invariants.md"), re.MULTILINE) == [f"I{n}" for n in range(1, 9)]

    def test_each_names_tests_and_modules_that_exist(self):
        text = page("invariants.md")
        tests = [re.findall(r"`(test_\w+)`", section) for section in re.split(r"^## I", text, flags=re.MULTILINE)[1:]]
        files = re.findall(r"`((?:core|tests)/[\w/]+\.py)`", text)

        assert all(tests)
        assert not [name for section in tests for name in section if name not in existing_tests()]
        assert not [name for name in files if not (ROOT / name).exists()]


def existing_tests() -> set[str]:
    found = re.compile(r"^ *def (test_\w+)\(", re.MULTILINE)
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in found.findall(path.read_text())}


def test_every_benchmark_is_described():
    runnable = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "ArgumentParser" in path.read_text()]

    assert len(runnable) >= 4
    assert not [name for name in runnable if f"benchmarks.{name}" not in page("benchmarks.md") and name != "__main__"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
class TestPages:
    def test_links_lead_somewhere(self, path):
        targets = [target for target in LINK.findall(path.read_text()) if not target.startswith("https://")]

        assert not [target for target in targets if not leads_somewhere(path, target)]

    def test_name_no_folder_of_a_machine_and_no_registry(self, path):
        assert not FORBIDDEN.findall(path.read_text())

    def test_python_can_be_compiled(self, path):
        for number, body in enumerate(blocks(path.read_text(), "python")):
            compile(body, f"{path.name}, block {number}", "exec")


def leads_somewhere(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    there = (path.parent / name) if name else path
    return there.exists() and (not anchor or anchor in anchors(there))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme():
    assert not [path.name for path in PAGES[1:] if path.name not in README.read_text()]


def test_the_svg_of_the_readme_needs_nothing_from_elsewhere():
    addresses = re.findall(r"(?:href|src|url)[=(]\W*(\w+:[^\"')]+)", (ROOT / "docs" / "running.svg").read_text())

    assert not addresses


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """Return a folder with the plugin's files, and the metadata that pip would write."""
    folder = tmp_path_factory.mktemp("readme") / "reminders"
    for body in blocks(README.read_text(), "toml", "python"):
        path = folder / body.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    about = folder / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["rota.plugins"]
    (about / "entry_points.txt").write_text(
        "[rota.plugins]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
    )
    return folder


def python(package: Path, *words: str) -> str:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{package}:{ROOT}", "HOME": str(package)}
    done = subprocess.run(
        [sys.executable, *words], cwd=package, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestTheReadmesPlugin:
    def test_has_the_files_it_speaks_of(self, package):
        assert {str(path.relative_to(package)) for path in package.rglob("*.*") if path.is_file()} >= {
            "pyproject.toml",
            "reminders/__init__.py",
            "reminders/jobs.py",
            "reminders/migrations/0001_reminders.py",
            "tests/conftest.py",
            "tests/test_reminders.py",
        }

    def test_is_loaded_and_listed(self, package):
        listed = python(package, "-c", "from core.cli import main; main(['plugins', '--json'])")
        (found,) = [plugin for plugin in json.loads(listed) if plugin["name"] == "reminders"]

        assert found == {
            "name": "reminders",
            "distribution": "reminders",
            "version": "0.1.0",
            "state": "loaded",
            "jobs": ["send-due-reminders"],
            "migrations": ["0001_reminders"],
            "error": None,
        }

    def test_passes_its_own_test_on_its_own_table(self, package):
        assert "1 passed" in python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider")
