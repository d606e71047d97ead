"""The import rules between the rooms of ``core``, and limits for files and functions."""

import ast
import importlib
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import core

ROOT = Path(__file__).parents[1]
LAYERS = [  # a room imports from its own line or from a line below it
    {"commands", "main", "testing", "upkeep"},
    {"middleware", "worker"},
    {"cli", "dispatcher", "web"},
    {"operations", "scheduling"},
    {"cancel", "close_limit", "key_schedules"},
    {"enqueue", "schema", "transport"},
    {"ledger"},
    {"batching", "database", "embedded", "plugins", "supervisor", "sweeps"},
    {"observability", "tables"},
    {"jobs", "service_redis", "settings"},
    {"clock", "connections", "errors"},
    {"round_trips"},
    {"forks"},
]
HEIGHT = {name: -depth for depth, names in enumerate(LAYERS) for name in names}
#: The only modules that may import these libraries.
MAY_IMPORT = {
    "dramatiq": {"main", "middleware", "transport", "worker"},
    "periodiq": {"main", "scheduling"},
}
HAS_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef
SOURCES = [path.relative_to(ROOT) for top in ("core", "plugins") for path in sorted((ROOT / top).rglob("*.py"))]
CORE = [path for path in SOURCES if path.parts[0] == "core"]
PLUGINS = [path for path in SOURCES if path.parts[0] == "plugins" and len(path.parts) > 2]


def imports(path: Path, *, at_once: bool = False) -> Iterator[list[str]]:
    """Yield the imports of ``path``, split into names. With ``at_once``, only those that are executed at its import."""
    tree = ast.parse((ROOT / path).read_text())
    for node in needed_at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ([*str(node.module).split("."), alias.name] for alias in node.names)


def needed_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except the bodies of functions and the imports for type checkers."""
    yield node
    for child in ast.iter_child_nodes(node):
        is_called_later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_called_later and not is_for_types:
            yield from needed_at_once(child)


def is_module(parts: list[str]) -> bool:
    return ROOT.joinpath(*parts).with_suffix(".py").exists() or ROOT.joinpath(*parts, "__init__.py").exists()


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_every_module_of_the_core_has_a_line_and_every_line_its_modules():
    assert {path.with_suffix("").parts[1] for path in CORE} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("path", CORE, ids=str)
def test_imports_follow_the_arrows(path):
    here = path.with_suffix("").parts[1]
    for package, *rest in imports(path):
        assert here in MAY_IMPORT.get(package, {here}), f"{package} is for {MAY_IMPORT[package]}"
        if package == "core" and here != "__init__":
            assert rest, "import what you need from core, not core"
            assert rest[0] in HEIGHT, "core's own modules do not go through the front door"
            assert HEIGHT[rest[0]] <= HEIGHT[here], f"{here} may not reach up to {rest[0]}"


def test_only_its_command_imports_the_http_service():
    """The packages of the HTTP service belong to an extra, and other processes must not need them."""
    outside = [path for path in SOURCES if path.parts[:2] != ("core", "web") and path != Path("core/cli/web.py")]

    for path in outside:
        for package, *rest in imports(path):
            assert package not in {"fastapi", "starlette", "uvicorn"}, path
            assert (package, rest[:1]) != ("core", ["web"]), path


def test_no_two_modules_import_each_other():
    """No cycle of any length. Imports within functions do not count."""
    graph = {
        dotted(path): {
            ".".join(parts if is_module(parts) else parts[:-1])
            for parts in imports(path, at_once=True)
            if parts[0] in {"core", "plugins"}
        }
        for path in SOURCES
    }

    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", CORE, ids=str)
def test_the_core_imports_no_plugin(path):
    for package, *_ in imports(path):
        assert package != "plugins", "core finds plugins through the registry"
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("plugins."), "not by its name either"


@pytest.mark.parametrize("path", PLUGINS, ids=str)
def test_a_plugin_imports_the_front_door_and_itself(path):
    for package, *rest in imports(path):
        assert package not in MAY_IMPORT, "declare jobs with core.job"
        if package == "core":
            assert len(rest) == 1, f"core.{'.'.join(rest)} is not public"
            assert rest[0] in core.__all__, f"core.{rest[0]} is not public"
        if package == "plugins":
            assert rest[0] == path.parts[1], "plugins do not import each other"


@pytest.mark.parametrize("path", [path for path in PLUGINS if "migrations" not in path.parts], ids=str)
def test_a_plugin_names_its_tables_in_its_models_alone(path):
    """So the names of tables change in one module only."""
    models = importlib.import_module(f"plugins.{path.parts[1]}.models")
    tree = ast.parse((ROOT / path).read_text())
    prose = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, HAS_DOCSTRING)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    named = [name for name in models.Base.metadata.tables for text in texts if name in text and text not in prose]

    assert path.name == "models.py" or not named


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_the_clock_reads_the_time(path):
    reads = {
        "datetime.now(",
        "datetime.today(",
        "time.time(",
        "utcnow(",
        "date.today(",
        "time.gmtime(",
        "time.localtime(",
    }

    found = [call for call in reads if call in (ROOT / path).read_text()]

    assert path == Path("core/clock.py") or not found


def test_no_two_test_files_have_one_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))

    assert [name for name, count in names.items() if count > 1] == []  # pytest can collect only one of them


def test_the_ledger_has_one_newest_migration():
    """Two migrations that follow the same one, each from another branch, break every upgrade."""
    texts = [path.read_text() for path in (ROOT / "core/schema/ledger").glob("[0-9]*.py")]
    followed = Counter(line for text in texts for line in text.splitlines() if line.startswith("down_revision"))

    assert [line for line, count in followed.items() if count > 1] == []
