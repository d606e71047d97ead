"""``/health`` without a network: the exact answers, the reasons, and the headers of every answer."""

import json
import re
import threading
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from core import job, settings
from core.observability.events import WebFailed
from core.operations import service_health
from core.operations.probe import Probe
from core.operations.service_health import Watch
from core.worker import metrics_port
from tests.support.eventually import eventually
from tests.support.web import serving

WELL = '{"status":"healthy","database":"connected","redis":"connected","worker":"available","scheduler":"available"}'


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def fleet(start_process):
    """Register a worker and a scheduler with a recent heartbeat."""
    lease = timedelta(seconds=settings.current().lease_seconds)
    return [start_process(kind=kind, lease=lease) for kind in ("worker", "scheduler")]


def test_all_is_well_to_the_letter(fleet):
    with serving() as client:
        answer = client.get("/health")

    assert (answer.status_code, answer.text) == (200, WELL)


def test_a_missing_worker_is_named_with_the_time(start_process):
    start_process(kind="scheduler", lease=timedelta(seconds=15))
    with serving() as client:
        answer = client.get("/health")

    found = answer.json()
    assert answer.status_code == 503
    assert (found["status"], found["worker"], found["scheduler"]) == ("unhealthy", "unavailable", "available")
    assert set(found["reasons"]) == {"worker"}
    assert found["reasons"]["worker"].startswith("no worker is alive (seen since 20")


@pytest.mark.parametrize(("age", "is_there"), [(4.2, True), (4.8, False)])
def test_a_late_heartbeat_is_no_missing_worker(monkeypatch, age, is_there):
    """With the default of 3 seconds: 1.2 seconds late is late, and after 4.8 a frozen worker is named in time."""
    configured = settings.load({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"})
    now = datetime(2026, 3, 1, tzinfo=UTC)
    expires_at = now + timedelta(seconds=configured.lease_seconds - age)
    process = SimpleNamespace(expires_at=expires_at)

    assert service_health.is_silent(process, now, configured) != is_there
    longest = service_health.SILENT_AFTER_HEARTBEATS * configured.heartbeat_seconds + service_health.FRESH_SECONDS
    assert longest < 5


def test_a_process_without_heartbeats_is_silent_long_before_its_lease_ends(start_process):
    settled = settings.current()
    start_process(kind="scheduler", lease=timedelta(seconds=settled.lease_seconds))
    start_process(lease=timedelta(seconds=settled.lease_seconds - 5))  # as if its last heartbeat had been 5 s ago
    with serving() as client:
        found = client.get("/health").json()

    assert found["worker"] == "unavailable"
    assert re.match(r"no worker sends heartbeats; test:1 sent its last one \d+ s ago", found["reasons"]["worker"])


def test_a_stuck_worker_is_not_available(start_process):
    start_process(kind="stuck", lease=timedelta(seconds=15))
    with serving() as client:
        assert "make no progress" in client.get("/health").json()["reasons"]["worker"]


def test_in_local_mode_redis_is_not_used_and_the_scheduler_is_the_dispatcher(fleet):
    with serving(mode="local", redis_url=None) as client:
        found = client.get("/health").json()

    assert (found["redis"], found["worker"], found["scheduler"]) == ("not used", "available", "unavailable")
    assert "no dispatcher leads" in found["reasons"]["scheduler"]


def test_a_redis_that_is_away_is_named_without_its_password(fleet, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    with serving() as client:
        answer = client.get("/health")

    assert (answer.status_code, answer.json()["redis"], answer.json()["worker"]) == (503, "disconnected", "available")
    assert "geheim" not in answer.text


def test_a_postgresql_that_is_away_leaves_the_processes_unknown(fleet, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:geheim@127.0.0.1:1/none")
    with serving() as client:
        answer = client.get("/health")

    found = answer.json()
    assert (found["database"], found["worker"], found["scheduler"]) == ("disconnected", "unknown", "unknown")
    assert set(found["reasons"]) == {"database"}
    assert "geheim" not in answer.text


def test_the_time_in_a_reason_is_that_of_the_first_answer(start_process):
    with serving() as client:
        first = client.get("/health").json()["reasons"]["worker"]
        start_process(lease=timedelta(seconds=15))
        eventually(lambda: client.get("/health").json()["worker"] == "available")

        assert "seen since" in first
        assert "worker" not in client.get("/health").json()["reasons"]


def test_live_asks_no_server(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    with serving() as client:
        answer = client.get("/health/live")

    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize("path", ["/health/live", "/rota/x/health/live"])
def test_a_prefix_is_found_whether_or_not_the_proxy_removes_it(path):
    with serving(web_prefix="/rota/x") as client:
        assert client.get(path).status_code == 200


def test_every_answer_has_headers_for_safety_and_an_id():
    with serving() as client:
        answers = [client.get("/health/live"), client.get("/nowhere"), client.post("/health")]

    assert [answer.status_code for answer in answers] == [200, 404, 405]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Request-Id"]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 3


def test_a_refusal_is_a_problem_that_says_what_to_do_next():
    with serving() as client:
        answer = client.get("/nowhere")

    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (problem["status"], problem["code"], problem["instance"]) == (404, "http-404", "/nowhere")
    assert problem["next"]
    assert problem["request_id"] == answer.headers["X-Request-Id"]


def test_a_huge_body_is_refused():
    with serving() as client:
        answer = client.post("/nowhere", content=b"x" * 300_000)

    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_an_unexpected_error_is_logged_with_its_traceback_and_answered_without(monkeypatch, caplog):
    def fail(_watch):
        raise RuntimeError("geheim")

    monkeypatch.setattr(Watch, "health", fail)
    with serving() as client:
        answer = client.get("/health")

    (record,) = [record for record in caplog.records if isinstance(record.msg, WebFailed)]
    assert (answer.status_code, answer.json()["code"]) == (500, "failed")
    assert "geheim" not in answer.text
    assert (record.msg.route, record.msg.request) == ("/health", answer.json()["request_id"])
    assert record.exc_info[0] is RuntimeError


def test_an_answer_that_grows_old_before_the_other_server_answers_still_counts(fleet, database, monkeypatch):
    """Redis may answer so late that PostgreSQL's answer would be asked for again."""
    monkeypatch.setattr(service_health, "FRESH_SECONDS", 0)
    monkeypatch.setattr(service_health, "look_at_redis", lambda configured: "")
    watch = Watch(database, settings.current())
    wait(watch.ask(), 60)

    assert watch.health().database == "connected"


class TestProbe:
    def test_a_hanging_call_is_made_once(self):
        calls, go_on = [], threading.Event()

        def look():
            calls.append(1)
            go_on.wait(60)
            return "answer"

        probe = Probe("test", look)
        first, second = probe.ask(), probe.ask()

        assert first is second
        assert not first.done()
        assert not first.cancel()
        go_on.set()
        assert first.result(60) == "answer"
        assert probe.ask() is first
        assert len(calls) == 1

    def test_an_old_answer_is_asked_for_again(self):
        answers = iter("ab")
        probe = Probe("test", lambda: next(answers), fresh_seconds=0)

        assert probe.ask().result(60) == "a"
        assert eventually(lambda: probe.ask().result(60)) == "b"


def test_a_worker_answers_for_its_own_processes(fleet, monkeypatch):
    metrics_port.watch.cache_clear()
    is_healthy, body = metrics_port.health()

    assert (is_healthy, json.loads(body)["worker"]) == (False, "unavailable")  # processes of other workers do not count
    metrics_port.watch.cache_clear()
    monkeypatch.setattr(metrics_port, "own_processes", lambda: {"test:1"})
    is_healthy, body = metrics_port.health()
    metrics_port.watch.cache_clear()

    assert is_healthy
    assert json.loads(body) == {
        "status": "healthy",
        "database": "connected",
        "redis": "connected",
        "worker": "available",
    }
