"""The search for plugins: a broken plugin does not affect the others. The plugins are modules that the test writes."""

import itertools
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from core import Run, job, upkeep
from core.cli import COMMANDS as ROTAS_OWN
from core.errors import UnknownJob
from core.jobs import commands, hookspecs
from core.jobs.registry import Plugin, Registry
from core.observability.events import PluginFailed, PluginNotInstalled
from core.plugins import loading
from core.testing import registry_of
from tests.support.emitted import emitted, logged

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()

#: The first lines of each plugin's module.
HEAD = "from core import Run, every, hookimpl, job\n"
SOUND = """
@job("{job}")
def work(run: Run) -> None: ...

@hookimpl
def register_jobs():
    return [work]
"""

#: The names of the core's own jobs, in order.
UPKEEP = sorted(each.name for each in upkeep.register_jobs())

Write = Callable[..., EntryPoint]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module. Return the entry point ``name`` for it."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name: str, body: str, attribute: str = "", **values: str) -> EntryPoint:
        module = f"plugin_of_a_test_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(HEAD + body.replace("{job}", values.get("job", f"{name}-job")))
        written.append(module)
        return EntryPoint(name, f"{module}:{attribute}" if attribute else module, loading.GROUP)

    yield write
    for module in written:
        sys.modules.pop(module, None)


def loaded(*points: EntryPoint) -> dict[str, Plugin]:
    return {plugin.name: plugin for plugin in loading.load(points).plugins}


def error_of(point: EntryPoint) -> str:
    """Return the reason why the plugin is broken. Nothing of the plugin is loaded."""
    registry = loading.load([point])
    [plugin] = registry.broken()
    assert plugin.name == point.name
    assert plugin.state == "broken"
    assert {owner.name for owner in registry.owners.values()} == {"core"}
    return str(plugin.error)


# Valid plugins


def test_a_module_is_a_plugin(write: Write):
    registry = loading.load([write("billing", SOUND)])

    assert registry.job("billing-job").name == "billing-job"
    assert registry.owners["billing-job"].name == "billing"
    assert not list(registry.broken())


def test_a_class_is_called_and_its_instance_is_the_plugin(write: Write):
    body = """
class Billing:
    def __init__(self):
        self.name = "made-by-an-instance"

    @hookimpl
    def register_jobs(self):
        @job(self.name)
        def work(run: Run) -> None: ...
        return (work,)
"""

    registry = loading.load([write("billing", body, "Billing")])

    assert "made-by-an-instance" in registry


def test_an_instance_is_a_plugin(write: Write):
    body = """
class Billing:
    @staticmethod
    @hookimpl
    def register_jobs():
        return []

billing = Billing()
"""

    assert loaded(write("billing", body, "billing"))["billing"].state == "loaded"


def test_a_plugin_without_hooks_is_loaded_and_has_nothing(write: Write):
    plugin = loaded(write("empty", ""))["empty"]

    assert (plugin.state, plugin.jobs, plugin.migrations) == ("loaded", (), None)


def test_the_core_is_a_plugin_like_any_other():
    registry = loading.load([])

    [core] = registry.plugins
    assert (core.name, core.state, core.jobs) == ("core", "loaded", tuple(upkeep.register_jobs()))
    assert core.migrations is not None
    assert list(core.migrations.glob("0001_*.py"))


def test_jobs_are_listed_by_name_whatever_the_order_of_the_plugins(write: Write):
    first, second = write("alpha", SOUND, job="zebra"), write("beta", SOUND, job="ant")

    assert list(loading.load([second, first]).jobs) == list(loading.load([first, second]).jobs)
    assert [found.name for found in loading.load([first, second])] == sorted(["ant", *UPKEEP, "zebra"])


def test_the_installed_plugins_are_all_sound():
    assert [plugin.error for plugin in loading.current().broken()] == []


# One test for each hook


def test_hook_register_jobs(write: Write):
    assert [found.name for found in loaded(write("billing", SOUND))["billing"].jobs] == ["billing-job"]


def test_hook_register_migrations(write: Write, tmp_path: Path):
    body = f"""
from pathlib import Path

@hookimpl
def register_migrations():
    return Path({str(tmp_path)!r})
"""

    assert loaded(write("billing", body))["billing"].migrations == tmp_path


def test_hook_register_settings(write: Write, monkeypatch: pytest.MonkeyPatch):
    body = """
from core import PluginSettings

class BillingSettings(PluginSettings):
    prefix = "ROTA_BILLING_"
    grace_days: int = 3

@hookimpl
def register_settings():
    return BillingSettings
"""
    point = write("billing", body)

    assert loaded(point)["billing"].settings.__name__ == "BillingSettings"
    monkeypatch.setenv("ROTA_BILLING_GRACE_DAYS", "many")
    assert "ROTA_BILLING_GRACE_DAYS" in loaded(point)["billing"].error


AROUND = """
from core import RunMiddleware

class Tracing(RunMiddleware):
    every_job = {every_job}

tracing = Tracing()

@hookimpl
def register_middleware():
    return {returned}
"""


def around_runs(write: Write, every_job: str = "False", returned: str = "[tracing]") -> EntryPoint:
    return write("billing", SOUND + AROUND.replace("{every_job}", every_job).replace("{returned}", returned))


def test_hook_register_middleware(write: Write):
    registry = loading.load([around_runs(write), write("other", SOUND)])

    assert [str(found) for found in registry.middleware["billing-job"]] == ["plugin=billing middleware=Tracing"]
    assert set(registry.middleware) == {"billing-job"}


WANTS = """
from datetime import timedelta
from core import Keyed, KeySchedule

@job("{job}-poll", keyed=Keyed())
def poll(run: Run) -> None: ...

def wanted(session):
    yield KeySchedule("42", timedelta(seconds=60))

@hookimpl
def register_jobs():
    return [work, poll]

@hookimpl
def register_schedules():
    return {returned}
"""


def wants(write: Write, returned: str) -> EntryPoint:
    return write("billing", SOUND + WANTS.replace("{returned}", returned))


def test_hook_register_schedules(write: Write):
    registry = loading.load([wants(write, '{"billing-job-poll": wanted}'), write("other", SOUND)])

    assert not list(registry.broken())
    (each,) = registry.wanted_schedules["billing-job-poll"](Session())
    assert (each.key, each.every) == ("42", timedelta(seconds=60))


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("None", "register_schedules returned None"),
        ("[wanted]", "which is not a dict of functions by job name"),
        ('{"billing-job": wanted}', "names 'billing-job', which is not a job of the plugin with keyed="),
        ('{"billing-job-pol": wanted}', "did you mean 'billing-job-poll'?"),
        ('{"billing-job-poll": wanted(None)}', "which is not a function"),
        ('{"billing-job-poll": wanted, "other-job": wanted}', "names 'other-job'"),
    ],
)
def test_a_plugin_that_wants_schedules_of_no_job_of_its_own_is_broken(write: Write, returned: str, problem: str):
    registry = loading.load([wants(write, returned), write("other", SOUND)])

    (broken,) = registry.broken()
    assert (broken.name, problem in str(broken.error)) == ("billing", True)
    assert not registry.wanted_schedules


COMMANDS = """
from core import Command

@hookimpl
def register_commands():
    return {returned}
"""


def bringing(write: Write, returned: str, name: str = "billing") -> EntryPoint:
    return write(name, SOUND + COMMANDS.replace("{returned}", returned))


def test_hook_register_commands(write: Write):
    registry = loading.load([bringing(write, '[Command("invoices", "billing.commands:invoices", "List invoices.")]')])

    ((plugin, command),) = registry.commands()
    assert (plugin.name, command.name, command.line) == ("billing", "invoices", "List invoices.")
    assert "billing.commands" not in sys.modules


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("None", "register_commands returned None"),
        ("'invoices'", "which is not a list of Command"),
        ("['invoices']", "register_commands returned 'invoices', which is not a Command"),
        ("[Command('In voices', 'a:b', 'x')]", "the command 'In voices'; expected at most 40 lower-case letters"),
        ("[Command('runs', 'a:b', 'x')]", "the command 'runs', which is Rota's own"),
        ("[Command('invoices', 'a.b', 'x')]", "'invoices' at 'a.b'; expected a place such as"),
        ("[Command('invoices', 'a:b', 'x\\ny')]", "with the line 'x\\ny'; expected printable text"),
    ],
)
def test_a_plugin_with_a_wrong_command_is_broken(write: Write, returned: str, problem: str):
    assert problem in error_of(bringing(write, returned))


def test_a_command_that_two_plugins_bring_breaks_both(write: Write):
    returned = "[Command('invoices', 'a:b', 'x')]"
    registry = loading.load([bringing(write, returned), bringing(write, returned, "shop")])

    assert {plugin.name for plugin in registry.broken()} == {"billing", "shop"}
    assert all("command name 'invoices' is declared by 'billing' and 'shop'" in str(p.error) for p in registry.broken())


def test_no_plugin_can_bring_a_command_of_rota():
    assert set(ROTAS_OWN) <= commands.OWN


ROUTES = """
from core import Route

@hookimpl
def register_routes():
    return {returned}
"""


def routed(write: Write, returned: str, name: str = "billing") -> EntryPoint:
    return write(name, SOUND + ROUTES.replace("{returned}", returned))


def test_hook_register_routes(write: Write):
    point = routed(write, '[Route("GET", "/invoices/{number}", "billing.routes:invoice", "viewer")]')
    registry = loading.load([point, write("other", SOUND)])

    ((plugin, (route,)),) = registry.routes().items()
    assert (plugin, str(route), route.role) == ("billing", "GET /invoices/{number}", "viewer")
    assert "billing.routes" not in sys.modules
    assert loading.load([point], disabled={"billing"}).routes() == {}


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("None", "register_routes returned None"),
        ("'invoices'", "which is not a list of Route"),
        ("['invoices']", "register_routes returned 'invoices', which is not a Route"),
        ("[Route('GET', '/x', 'a:b')]", "missing 1 required positional argument: 'role'"),
        ("[Route('GET', '/x', 'a:b', '')]", "the route GET /x with the role ''; expected one of viewer, operator"),
        ("[Route('GET', '/x', 'a:b', None)]", "with the role None"),
        ("[Route('POST', '/x', 'a:b', 'viewer')]", "with the role viewer, which may change nothing"),
        ("[Route('get', '/x', 'a:b', 'viewer')]", "with the method 'get'; expected one of DELETE, GET"),
        ("[Route('GET', 'x', 'a:b', 'viewer')]", "with the path 'x'; expected a path such as '/invoices/{number}'"),
        ("[Route('GET', '/../tokens', 'a:b', 'viewer')]", "with the path '/../tokens'"),
        ("[Route('GET', '/{all:path}', 'a:b', 'viewer')]", "with the path '/{all:path}'"),
        ("[Route('GET', '/x', 'a.b', 'viewer')]", "at 'a.b'; expected a place such as 'billing.routes:invoices'"),
        ("[Route('GET', '/x', 'a:b', 'viewer', 5)]", "with the title 5; expected a text"),
        ("[Route('POST', '/x', 'a:b', 'operator', 'X')]", "with a title, which only a GET route may have"),
        ("[Route('GET', '/x', 'a:b', 'viewer')] * 2", "returned the route GET /x twice"),
    ],
)
def test_a_plugin_with_a_wrong_route_is_broken(write: Write, returned: str, problem: str):
    assert problem in error_of(routed(write, returned))


def test_middleware_may_surround_every_job(write: Write):
    registry = loading.load([around_runs(write, every_job="True"), write("other", SOUND)])

    assert set(registry.middleware) == {"billing-job", "other-job", *UPKEEP}


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("[tracing, tracing]", "returned <.*Tracing object at .*> twice"),
        ("[Tracing]", "is not a RunMiddleware; return an instance of it"),
        ("[None]", "returned None, which is not a RunMiddleware"),
        ("tracing", "which is not a list of RunMiddleware"),
        ("None", "register_middleware returned None"),
    ],
)
def test_a_plugin_with_middleware_that_is_none_is_broken(write: Write, returned: str, problem: str):
    registry = loading.load([around_runs(write, every_job="True", returned=returned), write("other", SOUND)])

    (broken,) = registry.broken()
    assert broken.name == "billing"
    assert re.search(problem, broken.error or "")
    assert not registry.middleware


def test_what_two_plugins_have_registered_surrounds_each_run_once(write: Write):
    borrowing = """
import sys

@hookimpl
def register_middleware():
    return [sys.modules["MODULE"].tracing]
"""
    first = around_runs(write, every_job="True")
    second = write("other", SOUND + borrowing.replace("MODULE", first.module))
    registry = loading.load([first, second])

    assert [str(found) for found in registry.middleware["other-job"]] == ["plugin=billing middleware=Tracing"]


def test_every_hook_has_a_test_and_a_docstring():
    assert loading.hooks()
    for name in loading.hooks():
        assert f"test_hook_{name}" in globals()
        assert len(getattr(hookspecs, name).__doc__) > 40


# Broken plugins

#: The first lines of a plugin that registers jobs.
HANDS_OVER = "@hookimpl\ndef register_jobs():\n    "
MIGRATES = "@hookimpl\ndef register_migrations():\n    "

BROKEN = {
    "an import error": ("import no_such_module_at_all", "", "ModuleNotFoundError: No module named"),
    "a syntax error": ("def (:", "", "SyntaxError: "),
    "an exception at import": ("raise RuntimeError('no licence')", "", "RuntimeError: no licence"),
    "sys.exit at import": ("raise SystemExit(3)", "", "SystemExit: 3"),
    "no such attribute": ("", "Billing", "AttributeError: "),
    "a constructor that raises": (
        "class Billing:\n    def __init__(self):\n        raise OSError('no config')",
        "Billing",
        "OSError: no config",
    ),
    "a constructor with arguments": ("class Billing:\n    def __init__(self, app): ...", "Billing", "TypeError: "),
    "a hook that raises": (HANDS_OVER + "1 / 0", "", "ZeroDivisionError: division by zero"),
    "a hook that exits": (HANDS_OVER + "raise SystemExit('bye')", "", "SystemExit: bye"),
    "a misspelt hook": (
        "@hookimpl\ndef register_job():\n    return []",
        "",
        "'register_job' is marked @hookimpl, but there is no such hook; did you mean 'register_jobs'?",
    ),
    "a hook like no other": (
        "@hookimpl\ndef frobnicate():\n    return []",
        "",
        "'frobnicate' is marked @hookimpl, but",
    ),
    "a misspelt hook in a class": (
        "class Billing:\n    @hookimpl\n    def register_migration(self): ...",
        "Billing",
        "did you mean 'register_migrations'?",
    ),
    "a hook without @hookimpl": (
        "def register_jobs():\n    return []",
        "",
        "has the name of a hook, but is not marked @hookimpl",
    ),
    "a hook with arguments of its own": (
        "@hookimpl\ndef register_jobs(app):\n    return []",
        "",
        "PluginValidationError: ",
    ),
    "a function that is not a job": (
        "def work(run): ...\n@hookimpl\ndef register_jobs():\n    return [work]",
        "",
        "which is not a job; decorate it with @job(…)",
    ),
    "@job without parentheses": (
        "@job\ndef work(run: Run): ...\n@hookimpl\ndef register_jobs():\n    return [work]",
        "",
        "which is not a job; decorate it with @job(…)",
    ),
    "None among the jobs": (HANDS_OVER + "return [None]", "", "returned None, which is not a job"),
    "None for the jobs": (HANDS_OVER + "...", "", "register_jobs returned None; is a return missing?"),
    "a string for the jobs": (HANDS_OVER + "return 'work'", "", "'work', which is not a list of jobs"),
    "a number for the jobs": (HANDS_OVER + "return 5", "", "5, which is not a list of jobs"),
    "a single job": (
        "@job('work')\ndef work(run: Run): ...\n@hookimpl\ndef register_jobs():\n    return work",
        "",
        "which is not a list of jobs",
    ),
    "a generator of jobs that raises": (
        HANDS_OVER + "yield 1 / 0",
        "",
        "ZeroDivisionError",
    ),
    "migrations that are not there": (
        MIGRATES + "return '/no/such/folder'",
        "",
        "register_migrations returned '/no/such/folder', which is not a folder",
    ),
    "migrations that are a file": (
        MIGRATES + "return __file__",
        "",
        "which is not a folder",
    ),
    "migrations that are a number": (MIGRATES + "return 5.5", "", "TypeError"),
    "None for the migrations": (
        MIGRATES + "...",
        "",
        "register_migrations returned None; is a return missing?",
    ),
    "a job with wrong options": (
        "@job('close-day', max_retries=-1, overlap='no')\ndef work(run: Run): ...",
        "",
        "DeclarationError: job 'close-day': max_retries=-1 must be a whole number, 0 or more; overlap='no' must be",
    ),
    "a schedule that never comes": ("every(seconds=0)", "", "DeclarationError: bad interval"),
    "a parameter without a type": (
        "@job('close-day')\ndef work(run: Run, region): ...",
        "",
        "DeclarationError: job 'close-day': parameter region has no type annotation",
    ),
    "an annotation that cannot be resolved": (
        "@job('close-day')\ndef work(run: Run, region: 'Region'): ...\n" + HANDS_OVER + "return [work]",
        "",
        "DeclarationError: job 'close-day': its annotations cannot be used: name 'Region' is not defined",
    ),
}


@pytest.mark.parametrize(("body", "attribute", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_and_has_no_jobs(write: Write, body, attribute, error):
    assert error in error_of(write("billing", body, attribute))


def test_a_broken_plugin_does_not_keep_the_others_from_loading(write: Write):
    points = [
        write("alpha", "raise SystemExit"),
        write("beta", SOUND),
        write("gamma", HANDS_OVER + "1 / 0"),
        write("delta", "@hookimpl\ndef register_job(): ..."),
        write("omega", SOUND),
    ]

    registry = loading.load(points)

    assert list(registry.jobs) == sorted(["beta-job", *UPKEEP, "omega-job"])
    assert {plugin.name for plugin in registry.broken()} == {"alpha", "gamma", "delta"}


def test_a_plugin_that_is_interrupted_by_the_keyboard_stops_everything(write: Write):
    with pytest.raises(KeyboardInterrupt):
        loading.load([write("billing", "raise KeyboardInterrupt")])


def test_a_broken_plugin_is_logged_with_its_name_and_reason(write: Write, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG", "rota")
    loading.load([write("billing", "raise RuntimeError('no licence')")])

    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.msg.plugin == "billing"
    assert "no licence" in record.getMessage()
    assert emitted(caplog, "plugin.failed") == [PluginFailed("billing")]
    assert "Traceback" in caplog.text


# Disabled plugins


def test_a_disabled_plugin_is_not_imported_and_has_no_jobs(write: Write):
    registry = loading.load([write("billing", "raise SystemExit('imported')"), write("other", SOUND)], {"billing"})

    states = {plugin.name: plugin.state for plugin in registry.plugins}
    assert states == {"core": "loaded", "billing": "disabled", "other": "loaded"}
    assert set(registry.jobs) == {"other-job", *UPKEEP}
    assert list(registry.broken()) == []


def test_a_disabled_plugins_jobs_are_nobodys_duplicates(write: Write):
    registry = loading.load([write("alpha", SOUND, job="same"), write("beta", SOUND, job="same")], {"alpha"})

    assert registry.owners["same"].name == "beta"


def test_a_disabled_plugin_that_is_not_installed_is_a_warning_with_the_nearest(write: Write, caplog):
    registry = loading.load([write("billing", SOUND)], {"biling"})

    assert registry.owners["billing-job"].state == "loaded"
    assert emitted(caplog, "plugin.not_installed") == [PluginNotInstalled("biling", "; did you mean 'billing'?")]
    assert "names biling, which is not installed; did you mean 'billing'?" in caplog.text


def test_a_process_starts_without_a_disabled_plugin_even_strictly(tmp_path: Path):
    started = start(tmp_path, ROTA_STRICT_PLUGINS="true", ROTA_DISABLED_PLUGINS="unlicensed")

    assert started.returncode == 0, started.stderr
    assert "no licence" not in started.stderr


def test_the_core_cannot_be_disabled(tmp_path: Path):
    started = start(tmp_path, ROTA_DISABLED_PLUGINS="unlicensed,core")

    assert started.returncode == 1
    assert "ROTA_DISABLED_PLUGINS names 'core', which has the ledger's tables and cannot be disabled" in started.stderr
    assert "Traceback" not in started.stderr


# Duplicates


def test_two_plugins_with_one_job_name_are_both_refused_and_both_named(write: Write):
    registry = loading.load(
        [write("beta", SOUND, job="same"), write("alpha", SOUND, job="same"), write("other", SOUND)]
    )

    errors = {plugin.name: plugin.error for plugin in registry.broken()}
    expected = "job name 'same' is declared by 'alpha' and 'beta'; rename one, or uninstall one of them"
    assert errors == {"alpha": expected, "beta": expected}
    assert set(registry.jobs) == {"other-job", *UPKEEP}


def test_three_plugins_with_one_job_name_are_all_refused(write: Write):
    registry = loading.load([write(name, SOUND, job="same") for name in ("alpha", "beta", "gamma")])

    assert {plugin.name for plugin in registry.broken()} == {"alpha", "beta", "gamma"}
    for plugin in registry.broken():
        assert all(name in str(plugin.error) for name in ("'alpha'", "'beta'", "'gamma'"))


def test_a_plugin_that_has_a_name_twice_is_refused(write: Write):
    assert "job name 'same' is declared by 'billing' and 'billing'" in error_of(
        write("billing", SOUND.replace("[work]", "[work, work]"), job="same")
    )


def test_jobs_of_one_plugin_with_different_numbers_for_one_limit_are_refused_and_named(write: Write):
    two = """
from core import Limit

@job("pull", limits=[Limit("host", at_once=2)])
def pull(run: Run) -> None: ...

@job("push", limits=[Limit("host", at_once=MOST)])
def push(run: Run) -> None: ...

@hookimpl
def register_jobs():
    return [pull, push]
"""

    assert "the jobs pull and push declare the limit 'host' with different numbers" in error_of(
        write("billing", two.replace("MOST", "3"))
    )
    assert not list(loading.load([write("shop", two.replace("MOST", "2"))]).broken())


def test_a_job_that_shares_a_name_breaks_its_plugins_other_jobs_too(write: Write):
    two = """
@job("lonely")
def lonely(run: Run) -> None: ...

@job("same")
def work(run: Run) -> None: ...

@hookimpl
def register_jobs():
    return [lonely, work]
"""

    assert "lonely" not in loading.load([write("alpha", two), write("beta", SOUND, job="same")])


def test_a_broken_plugins_jobs_are_nobodys_duplicates(write: Write):
    half = SOUND + "\n@hookimpl\ndef register_migrations():\n    return '/no/such/folder'\n"

    registry = loading.load([write("alpha", half, job="same"), write("beta", SOUND, job="same")])

    assert registry.owners["same"].name == "beta"


def test_a_plugin_cannot_take_the_cores_jobs_away(write: Write):
    registry = loading.load([write("billing", SOUND, job="prune-runs")])

    assert registry.owners["prune-runs"].name == "core"
    [billing] = registry.broken()
    assert "'core' and 'billing'" in str(billing.error)


def test_a_plugin_called_core_is_refused(write: Write):
    registry = loading.load([write("core", SOUND, job="impostor")])

    assert list(registry.jobs) == UPKEEP
    assert [plugin.state for plugin in registry.plugins] == ["loaded", "broken"]


def test_the_same_module_under_two_names_is_loaded_once_and_reported(write: Write):
    point = write("alpha", SOUND)

    registry = loading.load([point, EntryPoint("beta", point.value, loading.GROUP)])

    assert registry.owners["alpha-job"].name == "alpha"
    assert [plugin.name for plugin in registry.broken()] == ["beta"]


def test_the_same_class_under_two_names_is_refused_naming_both(write: Write):
    body = "class Billing:\n    @hookimpl\n    def register_jobs(self):\n        return [work]\n"
    point = write("alpha", "@job('same')\ndef work(run: Run): ...\n" + body, "Billing")

    registry = loading.load([point, EntryPoint("beta", point.value, loading.GROUP)])

    assert {plugin.name for plugin in registry.broken()} == {"alpha", "beta"}


# The registry


@job("close-day")
def close_day(run: Run) -> None: ...


def test_an_unknown_job_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownJob, match=re.escape("unknown job 'close-dya'; did you mean 'close-day'?")):
        registry_of(close_day).job("close-dya")


def test_an_unknown_job_with_nothing_near_gets_no_suggestion():
    with pytest.raises(UnknownJob) as caught:
        registry_of(close_day).job("zzz")

    assert str(caught.value) == "unknown job 'zzz'"


def test_an_empty_registry_knows_no_job():
    assert list(Registry()) == []
    assert "close-day" not in Registry()


def test_only_jobs_with_a_schedule_are_scheduled():
    assert [found.name for found in registry_of(close_day, upkeep.prune_runs).scheduled()] == ["prune-runs"]


def test_a_registry_is_in_use_for_the_length_of_its_block():
    before = loading.current()

    with loading.using(registry_of(close_day)) as outer, loading.using(registry_of()) as inner:
        assert loading.current() is inner is not outer

    assert loading.current() is before


# Strict mode, and the start of a process


def start(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``import core.main`` as Dramatiq does, with a broken plugin installed and without any server."""
    info = tmp_path / "unlicensed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unlicensed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nunlicensed = unlicensed_plugin\n")
    (tmp_path / "unlicensed_plugin.py").write_text("raise RuntimeError('no licence')")
    command = "import sys; sys.argv = ['dramatiq']; import core.main; print(sorted(core.main.broker.actors))"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "ROTA_METRICS_DIR": str(tmp_path / "metrics"),
        **environ,
    }
    return subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_strict_plugins_refuse_to_start_naming_the_broken_one(tmp_path: Path):
    started = start(tmp_path, ROTA_STRICT_PLUGINS="true")

    assert started.returncode == 1
    assert "rota: ROTA_STRICT_PLUGINS is set, and plugins are broken:" in started.stderr
    assert "unlicensed: RuntimeError: no licence" in started.stderr
    assert "Traceback" not in started.stderr


def test_a_broken_plugin_and_absent_servers_do_not_keep_a_process_from_starting(tmp_path: Path):
    started = start(tmp_path)

    assert started.returncode == 0, started.stderr
    assert "prune-runs" in started.stdout
    [line] = logged(started.stderr, "plugin.broken")
    assert (line["plugin"], line["error"]) == ("unlicensed", "RuntimeError: no licence")


def test_wrong_settings_refuse_to_start_without_a_traceback(tmp_path: Path):
    started = start(tmp_path, DATABASE_URL="mysql://rota:hunter2@db/rota", ROTA_METRICS_PORT="http")

    assert started.returncode == 1
    assert "rota: the settings are not usable:" in started.stderr
    assert "DATABASE_URL starts with mysql://" in started.stderr
    assert "ROTA_METRICS_PORT " in started.stderr
    assert "Traceback" not in started.stderr
    assert "hunter2" not in started.stderr


def test_a_job_whose_grace_is_longer_than_runs_are_kept_is_said_when_a_process_starts(tmp_path: Path):
    started = start(tmp_path, ROTA_RETENTION_DAYS="0.2")

    assert started.returncode == 0, started.stderr
    reasons = {line["job"]: line["reason"] for line in logged(started.stderr, "job.outlives_its_runs")}
    assert reasons["prune-runs"].startswith("misfire_grace=6:00:00 is longer than ROTA_RETENTION_DAYS (0.2)")


def test_a_setting_that_a_plugin_left_behind_is_told_and_keeps_no_process_from_starting(tmp_path: Path):
    started = start(tmp_path, ROTA_INVOICES_TOKEN="hunter2", ROTA_UNLICENSED_TOKEN="hunter2")

    assert started.returncode == 0, started.stderr
    [line] = logged(started.stderr, "setting.unknown")
    assert line["variable"] == "ROTA_INVOICES_TOKEN"
    assert line["reason"].startswith("is not a setting")
    assert "ROTA_UNLICENSED_TOKEN" not in started.stderr
    assert "hunter2" not in started.stderr


def test_a_folder_that_hides_a_plugin_is_named(tmp_path, monkeypatch):
    """If a process starts in the folder above a project's folder, Python imports the project's folder instead of the
    editable installation.
    """
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hidden_plugin_of_a_test").mkdir()

    error = error_of(EntryPoint("hidden", "hidden_plugin_of_a_test:Hidden", loading.GROUP))

    assert f"the folder {tmp_path / 'hidden_plugin_of_a_test'} hides it" in error
    sys.modules.pop("hidden_plugin_of_a_test", None)
