"""Live pages: what is committed reaches the browsers that listen, and nobody is watched for when nobody listens."""

import asyncio
import http.client
import json
import queue
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy import text

from core import every, job
from core.database import connect
from core.jobs.registry import Plugin, Registry
from core.ledger import audit
from core.ledger.audit import Actor
from core.ledger.changes import Look
from core.observability.events import WebWatchFailed
from core.operations import connections
from core.operations.access import View
from core.plugins import loading
from core.settings import load
from core.web.live.hub import MOST_LISTENERS, MOST_OF_CALLER, Hub
from core.web.live.stream import visible
from core.web.live.watching import MOST_NAMED, Changed, Ledger, News, news
from core.web.service import CONNECTIONS
from tests.support.eventually import eventually
from tests.support.web import bearer, listening

#: From the commit to the event. The goal on the screen is 1.5 seconds.
TOLD_WITHIN = 1.5


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run):
    """Close the day."""


@job("poll", queue="mail")
def poll(run):
    """Poll."""


@pytest.fixture(autouse=True)
def registry(database):
    plugins = (Plugin("billing", "", "", (close_day,)), Plugin("mail", "", "", (poll,)))
    with loading.using(Registry(plugins)) as registry:
        yield registry


@pytest.fixture
def served(registry):
    with listening() as served:
        yield served


class Stream:
    """A browser that listens."""

    def __init__(self, address, headers):
        self.events, self.is_open, self.comments = queue.Queue(), True, 0
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        connection.request("GET", "/events", headers=headers)
        self._connection, self._socket = connection, connection.sock
        self._answer = connection.getresponse()
        assert self._answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.next()[0] == "hello"

    def _read(self):
        name = None
        with suppress(OSError, http.client.HTTPException):
            for line in self._answer:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    self.events.put((name, json.loads(value)))
                elif line.startswith(b":"):
                    self.comments += 1
        self.is_open = False

    def next(self, within=10):
        return self.events.get(timeout=within)

    def change(self):
        """The next change, which must come in time."""
        name, body = self.next(TOLD_WITHIN)
        assert name == "change"
        return body

    def close(self):
        with suppress(OSError):  # the service may have ended it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._answer.close()
        self._connection.close()
        self._socket.close()


@pytest.fixture
def listen(served, database):
    """A function that opens a stream, once the watcher knows what there is now."""
    with ExitStack() as stack:

        def opened(role="viewer", **limits):
            stream = Stream(served.address, bearer(database, role, **limits))
            stack.callback(stream.close)
            time.sleep(0.2)  # the first look must come before the change, and nothing tells that it has
            return stream

        yield opened


def status(served, headers, path="/events"):
    """The status of an answer that ends."""
    return httpx2.get(f"{served.address}{path}", headers=headers, timeout=20).status_code


def test_a_run_is_told_from_its_request_to_its_end(listen, ledger):
    stream = listen()

    run = ledger.request("close-day", queue="billing")
    assert stream.change() == {
        "topics": ["runs"],
        "runs": [{"id": run, "job": "close-day", "state": "queued"}],
        "more": False,
    }

    ledger.do("UPDATE rota_runs SET state = 'running', attempt = 1, started_at = now() WHERE id = :id", id=run)
    assert stream.change()["runs"] == [{"id": run, "job": "close-day", "state": "running"}]

    ledger.do("""UPDATE rota_runs SET progress = '{"done": 7}' WHERE id = :id""", id=run)
    assert stream.change()["runs"][0]["id"] == run

    ledger.do("UPDATE rota_runs SET state = 'retrying', due_at = now() + interval '1 h' WHERE id = :id", id=run)
    assert stream.change()["runs"][0]["state"] == "retrying"

    ledger.do("UPDATE rota_runs SET state = 'dead', reason = 'retries', finished_at = now() WHERE id = :id", id=run)
    assert stream.change()["runs"][0]["state"] == "dead"


def test_an_end_that_is_committed_late_is_told(listen, ledger):
    run = ledger.request("close-day", queue="billing", state="running")
    stream = listen()

    ledger.do(
        "UPDATE rota_runs SET state = 'succeeded', finished_at = now() - interval '10 seconds' WHERE id = :id", id=run
    )

    assert stream.change()["runs"] == [{"id": run, "job": "close-day", "state": "succeeded"}]


def test_a_request_that_is_committed_late_is_told(listen, ledger, database):
    stream = listen()

    with database.begin() as connection:
        late = connection.execute(
            text("INSERT INTO rota_runs (job, key, queue, exclusive) VALUES ('poll', '', 'mail', false) RETURNING id")
        ).scalar_one()
        run = ledger.request("close-day", queue="billing")
        assert [each["id"] for each in stream.change()["runs"]] == [run]

    assert [each["id"] for each in stream.change()["runs"]] == [late]


@pytest.mark.parametrize("action", ["retry", "drop", "cancel", "orphans adopt"])
def test_an_action_on_old_runs_is_told(database, ledger, action):
    watched = Ledger(database)
    watched.look()
    with database.begin() as connection:
        entry = audit.record(connection, Actor("ann", "cli"), action, "close-day", runs=1)

    assert watched.look() == News(frozenset({"runs"}), (), is_more=True)
    assert not watched.look()
    with database.begin() as connection:
        audit.amend(connection, entry, runs=2)
    assert watched.look() == News(frozenset({"runs"}), (), is_more=True)


def test_other_actions_are_no_news(database):
    watched = Ledger(database)
    watched.look()
    with database.begin() as connection:
        audit.record(connection, Actor("ann", "cli"), "tokens create", "ben")

    assert not watched.look()


def test_many_runs_at_work_are_no_news_if_nothing_changes(database, ledger):
    ledger.do("""
        INSERT INTO rota_runs (job, key, queue, exclusive, state)
        SELECT 'poll', n::text, 'mail', false, 'running' FROM generate_series(1, 300) AS n
    """)
    watched = Ledger(database)
    watched.look()
    ledger.do("UPDATE rota_runs SET key = 'x' || key WHERE key::int <= 100")  # moves the rows

    assert not watched.look()


def test_the_watcher_needs_no_connection_of_requests(served, listen, ledger):
    stream = listen()
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(served.parts.engine.connect())

        run = ledger.request("close-day", queue="billing")

        assert [each["id"] for each in stream.change()["runs"]] == [run]


def test_pauses_and_processes_are_told(listen, ledger, start_process):
    stream = listen()

    ledger.do("INSERT INTO rota_pauses (scope, paused_by) VALUES ('everything', 'ann')")
    assert stream.change()["topics"] == ["pauses"]
    start_process()
    assert stream.change()["topics"] == ["processes"]


def test_a_person_with_limits_is_told_of_their_jobs_only(listen, ledger):
    stream = listen(plugins=["mail"])

    ledger.request("close-day", queue="billing")
    with pytest.raises(queue.Empty):
        stream.next(within=TOLD_WITHIN)
    assert stream.comments == 0  # which would tell when something has changed
    run = ledger.request("poll", queue="mail")

    assert [each["id"] for each in stream.change()["runs"]] == [run]


def test_the_watcher_works_only_while_somebody_listens(listen, served):
    live = served.parts.live
    assert not live.is_watching

    first, second = listen(), listen("operator")
    assert (len(live), live.is_watching) == (2, True)
    first.close()
    eventually(lambda: len(live) == 1)
    assert live.is_watching
    second.close()

    eventually(lambda: not live.is_watching)


def test_a_stream_without_a_known_caller_is_refused(served):
    assert status(served, {}) == 401


def test_streams_end_at_once_when_the_service_stops(served, database):
    headers = bearer(database, "viewer")
    streams = [Stream(served.address, headers) for _ in range(3)]

    assert served.stop() < 1
    eventually(lambda: not any(stream.is_open for stream in streams), within=1)
    for stream in streams:
        stream.close()


def test_streams_do_not_use_the_places_of_requests(served, database):
    headers = bearer(database, "viewer")
    with ExitStack() as stack:
        for _ in range(45):
            stack.callback(Stream(served.address, headers).close)

        assert status(served, headers, "/api/v1/pauses") == 200


def test_too_many_streams_are_refused(served, database, monkeypatch):
    monkeypatch.setattr("core.web.live.stream.MOST_LISTENERS", 1)
    headers = bearer(database, "viewer")
    stream = Stream(served.address, headers)

    assert (status(served, headers), MOST_LISTENERS) == (503, 250)
    stream.close()


def test_too_many_streams_of_one_caller_are_refused(served, database, monkeypatch):
    monkeypatch.setattr("core.web.live.stream.MOST_OF_CALLER", 1)
    headers = bearer(database, "viewer")
    stream, other = Stream(served.address, headers), Stream(served.address, bearer(database, "operator"))

    assert (status(served, headers), MOST_OF_CALLER) == (503, 50)
    stream.close()
    other.close()


@contextmanager
def hub(engine):
    """A hub in an event loop of its own."""
    stopping, loop = threading.Event(), asyncio.new_event_loop()
    try:
        yield Hub(engine, stopping), loop
    finally:
        stopping.set()
        loop.close()


def failures(caplog):
    """The errors that the watcher has told of."""
    return [record.msg.error for record in caplog.records if isinstance(record.msg, WebWatchFailed)]


def test_a_server_that_is_away_is_told_once_and_to_later_listeners(caplog):
    engine = connect("postgresql://postgres@127.0.0.1:1/none")

    async def two(live):
        with live.listening("ann") as first:
            await first.wait(5)
            with live.listening("ben") as second:
                return first.is_away, second.is_away

    with hub(engine) as (live, loop):
        assert loop.run_until_complete(two(live)) == (True, True)
    assert failures(caplog) == ["OperationalError"]


def test_a_look_that_takes_too_long_does_not_mean_that_the_server_is_away(database, ledger, caplog, monkeypatch):
    monkeypatch.setattr("core.web.live.hub.FAILED_SECONDS", 0.05)

    async def after_lock(live):
        with live.listening("ann") as listener:
            with database.begin() as connection:
                connection.execute(text("LOCK TABLE rota_pauses"))
                await asyncio.to_thread(eventually, lambda: failures(caplog))
                await listener.wait(0.3)  # for what must not come
                was_away = listener.is_away
            await asyncio.to_thread(eventually, lambda: live._failure is None)
            ledger.do("INSERT INTO rota_pauses (scope, paused_by) VALUES ('everything', 'ann')")
            return (await listener.wait(5)).topics, was_away

    with connections.ledger(load(), "rota-test", 0.1) as engine, hub(engine) as (live, loop):
        assert loop.run_until_complete(after_lock(live)) == ({"pauses"}, False)
        live._stopping.set()
        eventually(lambda: not live.is_watching)
    assert failures(caplog) == ["OperationalError"]


def test_an_error_of_our_own_does_not_end_the_watcher(database, caplog, monkeypatch):
    looks = iter([KeyError("kind"), KeyError("kind"), News(frozenset({"pauses"}))])
    monkeypatch.setattr("core.web.live.hub.FAILED_SECONDS", 0.05)

    def look(_ledger):
        found = next(looks, News())
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Ledger, "look", look)

    async def first(live):
        with live.listening("ann") as listener:
            return (await listener.wait(5)).topics, listener.is_away

    with hub(database) as (live, loop):
        assert loop.run_until_complete(first(live)) == ({"pauses"}, False)
    assert failures(caplog) == ["KeyError"]


class TestNews:
    def looks(self, **runs):
        return Look({int(name[1:]): facts for name, facts in runs.items()}, {"pauses": "a"}, 9)

    def test_only_what_differs_is_news(self):
        before = self.looks(r1=("a", "running", "1"), r2=("b", "running", "1"))
        now = self.looks(r1=("a", "running", "1"), r2=("b", "running", "1 {}"), r3=("c", "queued", ""))

        found = news(before, now, [Changed(4, "d", "retrying")])

        assert found.topics == {"runs"}
        assert [run.id for run in found.runs] == [2, 3, 4]

    def test_many_runs_are_not_named(self):
        now = self.looks(**{f"r{n}": ("a", "queued", "") for n in range(MOST_NAMED + 1)})

        found = news(self.looks(), now, [])

        assert (len(found.runs), found.is_more) == (MOST_NAMED, True)

    def test_news_that_nobody_fetched_do_not_grow(self):
        found = News()
        for start in range(0, 1000, 50):
            found = found.joined(News(frozenset({"runs"}), tuple(Changed(start + n, "a", "queued") for n in range(50))))

        assert (len(found.runs), found.is_more, found.runs[-1].id) == (MOST_NAMED, True, 999)

    @pytest.mark.parametrize(("job", "topics", "is_more"), [("poll", {"runs"}, True), ("close-day", set(), False)])
    def test_a_person_with_limits_is_told_of_more_only_with_a_run_of_theirs(self, job, topics, is_more):
        found = visible(
            News(frozenset({"runs", "operations"}), (Changed(1, job, "dead"),), is_more=True), View({"poll"})
        )

        assert (found.topics, found.is_more) == (topics, is_more)
