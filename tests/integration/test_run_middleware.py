"""Middleware of plugins around runs: it sees each attempt, and cannot change its outcome."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from core import RunMiddleware, job, send
from core.middleware import plugin_middleware
from core.middleware.execution import RECORDING
from core.worker import last_resort
from core.worker.completions import Completions
from core.worker.executor import Executor
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]


def failures_of(caplog, middleware):
    """Return the problems with a middleware of the tests' plugin that the log reports."""
    return [
        event.problem
        for event in emitted(caplog, "middleware.failed")
        if (event.plugin, event.middleware) == ("tests", middleware)
    ]


class Watching(RunMiddleware):
    """Records what it sees."""

    def __init__(self):
        self.seen = []
        self.ends = []

    @contextmanager
    def around(self, attempt):
        self.seen.append(("in", attempt.job.name, attempt.run.id, attempt.run.attempt))
        try:
            yield
        except BaseException as error:
            self.seen.append(("raised", type(error).__name__))
            raise
        else:
            self.seen.append(("out", attempt.result))

    def ended(self, attempt, state):
        self.ends.append((attempt.run.attempt, state, type(attempt.exception).__name__))


@pytest.fixture
def around(use_jobs):
    """Return a function that surrounds the job ``work`` with middleware of the plugin ``tests``."""

    def around(function, *middleware, **options):
        work = job("work", **{"retry_delay": timedelta(0), **options})(function)
        use_jobs(work, middleware=middleware)
        return work

    return around


def fail(run):
    leave(run.session, "half")
    raise RuntimeError("failed on purpose")


def succeed(run):
    leave(run.session, "done")
    return {"ok": True}


class TestSight:
    """Middleware sees the job, the run, the attempt, the function's result, and the recorded outcome."""

    def test_a_success_is_seen_with_its_result(self, run_job, around):
        watching = Watching()
        row = run_job(around(succeed, watching))

        assert watching.seen == [("in", "work", row.id, 1), ("out", {"ok": True})]
        assert watching.ends == [(1, "succeeded", "NoneType")]

    def test_each_failed_attempt_is_seen_whether_retried_or_dead(self, run_job, around):
        watching = Watching()
        work = around(fail, watching, max_retries=1)
        row = run_job(work)
        run_job.executor.execute(work, row.id)

        assert watching.seen == [
            ("in", "work", row.id, 1), ("raised", "RuntimeError"), ("in", "work", row.id, 2), ("raised", "RuntimeError")
        ]  # fmt: skip
        assert watching.ends == [(1, "retrying", "RuntimeError"), (2, "dead", "RuntimeError")]

    def test_a_lost_lease_is_told_as_lost(self, run_job, around, ledger):
        watching = Watching()
        take_away = "UPDATE rota_runs SET token = token + 1000"
        row = run_job(around(lambda run: ledger.do(take_away), watching))

        assert watching.ends == [(1, "lost", "LeaseLost")]
        assert row.state == "running"

    def test_what_fails_after_the_function_is_told_too(self, run_job, around):
        watching = Watching()
        assert run_job(around(lambda run: object(), watching)).state == "dead"

        assert watching.seen[-1][0] == "out"
        assert watching.ends == [(1, "dead", "BadResult")]

    def test_it_is_told_only_once_the_end_is_in_the_ledger(self, run_job, around, ledger):
        found = []

        class Reading(RunMiddleware):
            def ended(self, attempt, state):
                found.append((state, ledger.run(attempt.run.id).state))

        run_job(around(fail, Reading()))
        run_job(around(succeed, Reading()))

        assert found == [("retrying", "retrying"), ("succeeded", "succeeded")]

    def test_it_is_told_of_successes_that_are_recorded_together(self, executor, database, around, ledger):
        watching, ended = Watching(), threading.Event()
        work = around(lambda run: 1, watching, overlap="allow")
        completions = Completions(database, executor.membership)
        together = Executor(database, executor.membership, "test:1", completions=completions)
        try:
            assert together.execute(work, ledger.request(exclusive=False), carried=Message(ended.set)) == RECORDING
            assert ended.wait(10)
            eventually(lambda: watching.ends == [(1, "succeeded", "NoneType")], within=10)
        finally:
            completions.stop()

    def test_it_is_within_the_transaction(self, run_job, around, ledger):
        class Writing(RunMiddleware):
            @contextmanager
            def around(self, attempt):
                leave(attempt.run.session, "before")
                yield

        assert run_job(around(succeed, Writing())).state == "succeeded"
        assert ledger.effects() == ["before", "done"]
        assert run_job(around(fail, Writing())).state == "retrying"
        assert ledger.effects() == ["before", "done"]

    def test_the_first_is_the_outermost(self, run_job, around):
        order = []

        class Named(RunMiddleware):
            def __init__(self, name):
                self.name = name

            @contextmanager
            def around(self, attempt):
                order.append(self.name)
                yield
                order.append(self.name)

        run_job(around(succeed, Named("a"), Named("b")))

        assert order == ["a", "b", "b", "a"]

    def test_the_fast_lane_is_surrounded_too(self, serve, use_jobs, database, heard, hear):
        watching = Watching()
        service = serve(hear)
        use_jobs(hear, middleware=[watching])
        service.work()
        with Session(database) as session, session.begin():
            send(session, "hear", args={"word": 5})

        eventually(lambda: watching.ends, within=10)
        assert watching.seen == [("in", "hear", 0, 1), ("out", None)]
        assert watching.ends == [(1, "succeeded", "NoneType")]


class Message:
    """A message that belongs to a run."""

    lease = None

    def __init__(self, end):
        self.end = end

    def worked(self, seconds):
        assert seconds >= 0


def never_entered(middleware, attempt):
    raise KeyError("entering")


@contextmanager
def never_left(middleware, attempt):
    yield
    raise KeyError("leaving")


@contextmanager
def replaces(middleware, attempt):
    try:
        yield
    except RuntimeError as error:
        raise SystemExit(3) from error


@contextmanager
def swallows(middleware, attempt):
    with suppress(BaseException):
        yield


@contextmanager
def never_yields(middleware, attempt):
    if attempt is None:
        yield


@contextmanager
def yields_twice(middleware, attempt):
    yield
    yield


def nothing_at_all(middleware, attempt):
    return None


BAD = [never_entered, never_left, replaces, swallows, never_yields, yields_twice, nothing_at_all]
#: Middleware that causes no problem if the job succeeds, or if it fails.
HARMLESS = {succeed: [replaces, swallows], fail: [never_left, yields_twice]}


class TestBadMiddleware:
    """The outcome is that of the job, and the log names the plugin."""

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize(
        ("function", "state", "effects"), [(succeed, "succeeded", ["done"]), (fail, "retrying", [])]
    )
    def test_what_it_raises_or_swallows_changes_no_outcome(
        self, run_job, around, ledger, caplog, bad, function, state, effects
    ):
        watching = Watching()
        row = run_job(around(function, watching, type("Bad", (RunMiddleware,), {"around": bad})()))

        assert (row.state, row.result) == (state, {"ok": True} if state == "succeeded" else None)
        assert ledger.effects() == effects
        assert watching.ends[0][1] == state
        is_told = bool(failures_of(caplog, "Bad"))
        assert is_told == (bad not in HARMLESS[function])

    def test_one_whose_end_raises_changes_no_outcome(self, run_job, around, caplog):
        class Bad(RunMiddleware):
            def ended(self, attempt, state):
                raise SystemExit("on purpose")

        watching = Watching()
        assert run_job(around(succeed, Bad(), watching)).state == "succeeded"

        assert failures_of(caplog, "Bad") == ["its `ended` raised; the run stays as it is"]
        assert watching.ends == [(1, "succeeded", "NoneType")]

    def test_one_that_hangs_before_the_job_is_interrupted_at_the_soft_limit(self, run_job, around):
        class Hanging(RunMiddleware):
            @contextmanager
            def around(self, attempt):
                hang()
                yield

        row = run_job(around(succeed, Hanging(), soft_limit=timedelta(seconds=0.2), hard_limit=timedelta(seconds=60)))

        assert row.state == "retrying"
        assert row.error == (
            "TimeLimitExceeded: soft limit of 0:00:00.200000 passed in plugin=tests middleware=Hanging"
        )

    def test_one_that_hangs_after_the_job_loses_nothing_of_its_success(self, run_job, around, ledger, caplog):
        class Hanging(RunMiddleware):
            @contextmanager
            def around(self, attempt):
                yield
                hang()

        row = run_job(around(succeed, Hanging(), soft_limit=timedelta(seconds=0.2), hard_limit=timedelta(seconds=60)))

        assert (row.state, ledger.effects()) == ("succeeded", ["done"])
        assert failures_of(caplog, "Hanging") == ["it could not be exited; the outcome stays"]

    def test_one_whose_end_hangs_is_interrupted(self, run_job, around, monkeypatch, caplog):
        monkeypatch.setattr(plugin_middleware, "ENDED_SOFT", timedelta(seconds=0.2))

        class Hanging(RunMiddleware):
            def ended(self, attempt, state):
                hang()

        assert run_job(around(succeed, Hanging())).state == "succeeded"
        assert failures_of(caplog, "Hanging")[0].startswith("its `ended` took longer than")

    def test_one_that_hangs_and_will_not_be_interrupted_ends_with_its_process(self, run_job, around, monkeypatch):
        """The process ends at the job's hard limit. The run is recorded as failed, with the name of the middleware."""
        ended = threading.Event()
        monkeypatch.setattr(last_resort.os, "_exit", lambda status: ended.set())
        monkeypatch.setattr(last_resort, "GIVE_UP_SECONDS", 30.0)

        class Deaf(RunMiddleware):
            @contextmanager
            def around(self, attempt):
                assert ended.wait(30)  # a wait in C, which cannot be interrupted
                yield

        limits = {"soft_limit": timedelta(seconds=0.1), "hard_limit": timedelta(seconds=0.3)}
        row = run_job(around(succeed, Deaf(), **limits))

        assert row.state == "retrying"
        assert "hard limit of 0:00:00.300000 passed in plugin=tests middleware=Deaf" in row.error

    def test_what_it_leaves_in_context_variables_ends_with_the_run(self, run_job, around):
        variable = ContextVar("variable", default="before")

        class Leaving(RunMiddleware):
            @contextmanager
            def around(self, attempt):
                variable.set("left behind")
                yield

        seen = []
        run_job(around(lambda run: seen.append(variable.get()), Leaving()))

        assert (seen, variable.get()) == (["left behind"], "before")

    def test_what_it_leaves_in_context_variables_when_told_of_the_end_ends_there(self, run_job, around):
        variable = ContextVar("variable", default="before")

        class Leaving(RunMiddleware):
            def ended(self, attempt, state):
                variable.set("left behind")

        run_job(around(succeed, Leaving()))

        assert variable.get() == "before"


def hang(seconds=30):
    """Hang in Python code, which can be interrupted."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


SENTRY = """
import json, sys
from datetime import timedelta

import sentry_sdk
from sentry_sdk.transport import Transport

from core import database, job
from core.ledger import runs
from core.plugins import loading
from core.testing import Member, RunJob, registered, registry_of
from core.worker.executor import Executor

kept = []

class Keeping(Transport):
    def capture_envelope(self, envelope):
        kept.append(envelope.get_event())

init = sentry_sdk.init
sentry_sdk.init = lambda **options: init(dsn="https://public@sentry.invalid/1", transport=Keeping, **options)

exec(compile(sys.stdin.read(), "recipe", "exec"))

@job("charge", max_retries=1, retry_delay=timedelta(0))
def charge(run, card: str = "4111"):
    if run.attempt == 1:
        sentry_sdk.capture_message("slow")
    raise ValueError("declined")

@job("fine")
def fine(run): ...

engine = database.connect(sys.argv[1])
with loading.using(registry_of(charge, fine, middleware=register_middleware())), registered(engine) as process_id:
    run_job = RunJob(Executor(engine, Member(process_id), "test:1"))
    run_job(fine)
    row = run_job(charge)
    run_job.executor.execute(charge, row.id)
sentry_sdk.flush()
assert "4111" not in json.dumps(kept, default=str)
events = [(event.get("message") or event["exception"]["values"][-1]["value"], event["tags"]) for event in kept]
print(json.dumps({"run": str(row.id), "events": events}))
database.dispose(engine)
"""


def test_the_recipe_for_sentry_reports_each_failed_attempt_with_its_tags(database, postgres_url):
    """The test uses the real SDK, with a transport that keeps the events instead of sending them."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.DOTALL)
    (recipe,) = [block for block in blocks if "class Sentry" in block]
    command = [sys.executable, "-c", SENTRY, postgres_url]
    done = subprocess.run(command, input=recipe, capture_output=True, text=True, timeout=60, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    tags = {"job": "charge", "run": told["run"]}
    assert told["events"] == [
        ["slow", {**tags, "attempt": "1"}],
        ["declined", {**tags, "attempt": "1", "state": "retrying"}],
        ["declined", {**tags, "attempt": "2", "state": "dead"}],
    ]
