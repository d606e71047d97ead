"""The names that plugins import, the tree of errors, and that importing Rota has no effects."""

import inspect
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import core
from core import clock, errors
from core.errors import RotaError, TimeLimitExceeded, suggestion

#: Modules that ``import core`` must not import.
HEAVY = ("dramatiq", "periodiq", "redis", "prometheus_client", "alembic", "core.main", "core.worker.actors", "plugins")


def test_the_public_names_are_sorted_and_each_is_there_once():
    assert core.__all__ == sorted(set(core.__all__))


def test_every_name_in_the_front_door_is_public():
    modules = {name for name, value in vars(core).items() if inspect.ismodule(value)}

    assert {name for name in vars(core) if not name.startswith("_")} - modules == set(core.__all__)


@pytest.mark.parametrize("name", core.__all__)
def test_a_public_name_is_documented(name):
    public = getattr(core, name)

    if name != "hookimpl":  # it is an instance of a class of pluggy
        assert public.__module__.startswith("core.")
    assert len(inspect.getdoc(public) or "") > 20


@pytest.mark.parametrize("name", core.__all__)
def test_what_a_public_class_offers_is_documented(name):
    for member, value in vars(getattr(core, name)).items() if inspect.isclass(getattr(core, name)) else ():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_importing_rota_imports_no_broker_and_opens_no_connection():
    program = f"""
import socket, sys

def refuse(*arguments):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.create_connection = refuse
import psycopg2
psycopg2.connect = refuse
import threading
import core
print([name for name in sys.modules if name.split(".")[0] in {HEAVY} or name in {HEAVY}], threading.active_count())
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env={}
    )

    assert done.stdout.strip() == "[] 1"


# The tree of errors


def drawn() -> dict[str, str]:
    """Return each error in the docstring's tree, with its parent."""
    found, parents = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        drawing = re.fullmatch(r"((?:│   |    )*)(├── |└── )?([A-Z]\w+)(?: .*)?", line)
        if drawing is None or not (drawing[2] or drawing[3] in {"RotaError", "Interrupted"}):
            continue
        depth = len(drawing[1]) // 4 + bool(drawing[2])
        parents[depth] = drawing[3]
        found[drawing[3]] = parents[depth - 1] if depth else ""
    return found


def test_the_tree_that_is_drawn_is_the_tree_that_is_there():
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    parents = {name: value.__base__.__name__ for name, value in classes.items()}

    assert len(drawn()) > 8
    assert drawn() | {"RotaError": "Exception", "Interrupted": "BaseException"} == parents


def test_every_error_is_documented():
    for name in drawn():
        assert getattr(errors, name).__doc__, name


def test_an_exceeded_limit_is_no_ordinary_exception():
    assert not issubclass(TimeLimitExceeded, Exception)
    assert not issubclass(TimeLimitExceeded, RotaError)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("close-dya", "; did you mean 'close-day'?"),
        ("closeday", "; did you mean 'close-day'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_name_is_suggested_if_it_is_near(name, expected):
    assert suggestion(name, {"close-day", "open-shop"}) == expected


def test_nothing_is_suggested_where_nothing_is_known():
    assert suggestion("close-day", []) == ""


# The clock


def test_the_clock_answers_in_utc_and_does_not_stand_still():
    first = clock.system_clock()

    assert first.tzinfo is UTC
    assert first <= clock.system_clock() <= datetime.now(UTC)


def test_an_application_that_imports_the_main_module_keeps_its_own_logging(tmp_path: Path):
    program = (
        "import io, logging, sys\n"
        "stream = io.StringIO()\n"
        "logging.basicConfig(stream=stream, level=logging.ERROR, format='mine: %(message)s')\n"
        "before = list(logging.getLogger().handlers)\n"
        "import core.main\n"
        "logging.getLogger('shop').error('sold')\n"
        "assert logging.getLogger().handlers == before\n"
        "assert logging.getLogger().level == logging.ERROR\n"
        "assert stream.getvalue() == 'mine: sold\\n', stream.getvalue()\n"
    )
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "ROTA_METRICS_DIR": str(tmp_path),
    }

    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_a_worker_loads_neither_migrations_nor_the_command_line(tmp_path: Path):
    program = (
        "import sys; sys.argv = ['dramatiq']; import core.main\n"
        "assert not {'alembic', 'click', 'core.cli', 'core.schema.upgrade'} & set(sys.modules)"
    )
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "ROTA_METRICS_DIR": str(tmp_path),
    }

    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
