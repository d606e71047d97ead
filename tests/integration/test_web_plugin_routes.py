"""Routes that plugins bring: behind the same door as Rota's own, and no harm to the others if one is wrong."""

import asyncio
import sys
import threading
import types
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core import NotFound, RotaError, Route, settings
from core.errors import PluginError
from core.jobs.registry import Plugin, Registry
from core.ledger.audit import Actor
from core.observability.events import WebFailed, WebRefused, WebRoutesBroken
from core.operations import tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.web import plugin_calls, plugin_session
from core.web.refusals import PluginBusy
from tests.support.eventually import PATIENCE_SECONDS, eventually
from tests.support.web import serving

MODULE = "routes_of_a_test"
GO_ON, HOLDS = threading.Event(), threading.Event()


class Shelf(BaseModel):
    """A shelf."""

    name: str
    size: int = 1


def shelves(session: Session, limit: int = 10) -> list[Shelf]:
    """List the shelves."""
    return [Shelf(name=str(session.execute(text("SELECT 1")).scalar_one()), size=limit)]


def build(session: Session, name: str, shelf: Shelf) -> Shelf:
    """Build a shelf."""
    session.execute(text("UPDATE rota_limits SET name = name"))
    return shelf


def clear(session: Session) -> None:
    """Clear all."""
    session.execute(text("INSERT INTO rota_audit (actor, via, action, target) VALUES ('plugin', 'x', 'x', 'x')"))


def fail(session: Session, how: str) -> None:
    """Fail."""
    clear(session)
    raise {"refuse": RotaError("full"), "unknown": NotFound("no such shelf"), "exit": SystemExit("secret"),
           "stop": StopIteration("secret"), "error": KeyError("secret")}[how]  # fmt: skip


def hang(session: Session) -> None:
    """Hang."""
    clear(session)
    GO_ON.wait(60)


def hold(session: Session) -> None:
    """Keep a row, and wait for another server."""
    session.execute(text("UPDATE rota_audit SET via = 'y' WHERE actor = 'held'"))
    HOLDS.set()
    GO_ON.wait(60)


def commit(session: Session) -> None:
    """Commit, and change something after it."""
    clear(session)
    session.commit()
    clear(session)


def commit_first(session: Session) -> None:
    """Commit before the change, so that no limit of a GET would count."""
    shelves(session)
    session.commit()
    clear(session)


def roll_back_first(session: Session) -> None:
    """Roll back before the change, so that no limit of a GET would count."""
    shelves(session)
    session.rollback()
    clear(session)


def use_a_savepoint(session: Session) -> None:
    """Change something in a savepoint."""
    with session.begin_nested():
        clear(session)


def lie(session: Session) -> list[Shelf]:
    """Return what does not fit."""
    clear(session)
    return "secret"


def write_while_reading(session: Session) -> None:
    """Change something, although the method is GET."""
    clear(session)


def without_session(name: str) -> None:
    """Lack the session."""


def without_answer(session: Session):
    """Lack the annotation of the answer."""


def without_schema(session: Session, what: threading.Event) -> None:
    """Have a parameter that no request can have."""


async def coroutine(session: Session) -> None:
    """Need no thread."""


def route(method, path, function, role):
    return Route(method, path, f"{MODULE}:{function.__name__}", role)


ROUTES = (
    route("GET", "/shelves", shelves, "viewer"),
    route("PUT", "/shelves/{name}", build, "operator"),
    route("DELETE", "/shelves", clear, "admin"),
    route("POST", "/fail/{how}", fail, "operator"),
    route("POST", "/hang", hang, "operator"),
    route("POST", "/lie", lie, "operator"),
    route("GET", "/write", write_while_reading, "viewer"),
    route("POST", "/hold", hold, "operator"),
    route("POST", "/commit", commit, "operator"),
    route("GET", "/commit-first", commit_first, "viewer"),
    route("GET", "/roll-back-first", roll_back_first, "viewer"),
    route("POST", "/savepoint", use_a_savepoint, "operator"),
)
SHOP, OTHER = Plugin("shop", "", "", routes=ROUTES), Plugin("other", "", "", routes=ROUTES[:1])
PREFIX = "/api/v1/plugins/shop"


@pytest.fixture(autouse=True)
def module(database, monkeypatch):
    module = types.ModuleType(MODULE)
    for function in [shelves, build, clear, fail, hang, hold, commit, commit_first, roll_back_first, use_a_savepoint,
                     lie, write_while_reading, without_session, without_answer, without_schema, coroutine]:  # fmt: skip
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, MODULE, module)
    GO_ON.clear()
    HOLDS.clear()
    yield
    GO_ON.set()


@contextmanager
def shop(*plugins, seconds=plugin_calls.SECONDS, **changed):
    """A client of a service with these plugins, in which a call may take so long."""
    with loading.using(Registry(plugins or (SHOP, OTHER))), serving(**changed) as client:
        for calls in client.calls.values():
            calls.seconds = seconds
        yield client


@pytest.fixture
def shown(database):
    def make(role="operator", **limits):
        wanted = Wanted(f"the-{role}", role, lasting=timedelta(days=1))
        with database.begin() as connection:
            secret = tokens.create(connection, wanted, Actor("ann", "cli")).token
            for column, names in limits.items():
                connection.execute(text(f"UPDATE rota_credentials SET {column} = :names"), {"names": names})
        return {"Authorization": f"Bearer {secret}"}

    return make


def cleared(ledger):
    return ledger.value("SELECT count(*) FROM rota_audit WHERE actor = 'plugin'")


def test_a_route_has_parameters_a_session_and_an_answer(shown, ledger):
    headers = shown("admin")
    with shop() as client:
        assert client.get(f"{PREFIX}/shelves", params={"limit": 3}, headers=headers).json() == [
            {"name": "1", "size": 3}
        ]
        built = client.put(f"{PREFIX}/shelves/a", json={"name": "a", "size": 2}, headers=headers)
        assert (built.status_code, built.json()) == (200, {"name": "a", "size": 2})
        assert client.delete(f"{PREFIX}/shelves", headers=headers).status_code == 204

    assert cleared(ledger) == 1
    assert ledger.value("SELECT details->>'route' FROM rota_audit WHERE action = 'call' ORDER BY id DESC LIMIT 1") == (
        "DELETE /shelves"
    )
    assert ledger.value("SELECT count(*) FROM rota_audit WHERE action = 'call'") == 2


@pytest.mark.parametrize(
    ("params", "body"),
    [({"limit": "many"}, None), ({}, {"name": "a", "size": "<script>"}), ({}, {"name": "a" * 300_000})],
)
def test_a_bad_request_is_refused_as_elsewhere(shown, params, body):
    with shop() as client:
        method, path = ("PUT", "/shelves/a") if body else ("GET", "/shelves")
        answer = client.request(method, PREFIX + path, params=params, json=body, headers=shown())

    assert answer.status_code in {413, 422}
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "<script>" not in answer.text


def test_the_document_has_the_routes_of_plugins_and_their_shapes(shown):
    with shop() as client:
        document = client.get("/api/v1/openapi.json", headers=shown("viewer")).json()
        page = client.get("/api", headers=shown("admin")).text

    found = document["paths"][f"{PREFIX}/shelves/{{name}}"]["put"]
    assert (found["description"], found["tags"]) == ("Build a shelf.", ["Plugin shop"])
    assert {"200", "401", "403", "422", "503"} <= set(found["responses"])
    assert "Shelf" in str(found["requestBody"])
    assert "rota_" not in str(document["paths"][f"{PREFIX}/shelves"])
    assert "Plugin shop" in page


@pytest.mark.parametrize("role", [None, "viewer", "operator", "admin"])
@pytest.mark.parametrize("called", ROUTES[:3], ids=str)
def test_each_role_may_call_the_routes_that_are_for_it(shown, role, called):
    path = PREFIX + called.path.format(name="a")
    with shop() as client:
        answer = client.request(called.method, path, headers=shown(role) if role else {})  # without a body

    ranks = [None, "viewer", "operator", "admin"]
    if role is None:
        assert answer.status_code == 401
    elif ranks.index(role) < ranks.index(called.role):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    else:
        assert answer.status_code in {200, 204, 422}


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ({"plugins": ["shop"]}, 200),
        ({"plugins": ["shop", "other"]}, 200),
        ({"plugins": ["other"]}, 403),
        ({"plugins": []}, 403),
        ({"queues": ["shop"]}, 403),  # a queue covers jobs, and not all that a plugin has
        ({"plugins": ["shop"], "queues": ["shop"]}, 403),
    ],
)
def test_a_token_with_limits_may_call_the_routes_of_its_plugins_alone(shown, limits, status):
    with shop() as client:
        answer = client.get(f"{PREFIX}/shelves", headers=shown("admin", **limits))

    assert answer.status_code == status


def test_another_site_cannot_call_a_route(database):
    with database.begin() as connection:
        link = tokens.link(connection, Actor("ann", "cli"))
    with shop() as client:
        client.post("/login", data={"secret": link}, headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=False)
        refused = client.delete(f"{PREFIX}/shelves", headers={"Sec-Fetch-Site": "cross-site"})
        allowed = client.delete(f"{PREFIX}/shelves", headers={"Sec-Fetch-Site": "same-origin"})

    assert (refused.status_code, refused.json()["code"]) == (403, "cross-origin")
    assert allowed.status_code == 204


def test_calls_count_as_changes_of_their_caller(shown):
    headers = shown("admin")
    with shop(per_minute=1) as client:
        assert client.delete(f"{PREFIX}/shelves", headers=headers).status_code == 204
        assert client.delete(f"{PREFIX}/shelves", headers=headers).status_code == 429


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("refuse", 409, "refused"),
        ("unknown", 404, "not-found"),
        ("error", 500, "failed"),
        ("exit", 500, "failed"),
        ("stop", 500, "failed"),
    ],
)
def test_a_route_that_raises_is_a_problem_and_changes_nothing(shown, ledger, caplog, how, status, code):
    headers = shown()
    with shop() as client:
        answer = client.post(f"{PREFIX}/fail/{how}", headers=headers)
        assert client.get(f"{PREFIX}/shelves", headers=headers).status_code == 200

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "secret" not in answer.text
    assert cleared(ledger) == 0
    assert ledger.value("SELECT count(*) FROM rota_audit WHERE action = 'call'") == 0
    failed = [record.msg.route for record in caplog.records if isinstance(record.msg, WebFailed)]
    assert failed == ([f"{PREFIX}/fail/{{how}}"] if status == 500 else [])


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/lie"), ("GET", "/write"), ("POST", "/commit"), ("GET", "/commit-first"), ("GET", "/roll-back-first")],
)
def test_a_wrong_answer_a_commit_and_a_change_in_a_get_change_nothing(shown, ledger, caplog, method, path):
    with shop() as client:
        answer = client.request(method, PREFIX + path, headers=shown())

    assert (answer.status_code, "secret" in answer.text) == (500, False)
    assert cleared(ledger) == 0
    assert ledger.value("SELECT count(*) FROM rota_audit WHERE action = 'call'") == 0
    assert ("a route does not commit: remove the commit" in caplog.text) == ("commit" in path)


def test_a_route_may_use_a_savepoint(shown, ledger):
    with shop() as client:
        assert client.post(f"{PREFIX}/savepoint", headers=shown()).status_code == 204

    assert cleared(ledger) == 1


def test_a_route_that_hangs_delays_no_other_and_changes_nothing(shown, ledger):
    headers = shown()
    with shop(seconds=0.3) as client:
        answers = [client.post(f"{PREFIX}/hang", headers=headers) for _ in range(plugin_calls.THREADS)]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "plugin-too-slow")] * 2
        waited = [client.post(f"{PREFIX}/hang", headers=headers).json()["code"] for _ in range(5)]
        assert set(waited) == {"plugin-too-slow"}  # those that wait for a thread are given up, and never run
        assert client.get("/api/v1/plugins/other/shelves", headers=headers).status_code == 200
        assert client.get("/api/v1/runs", headers=headers).status_code == 200
        calls = client.calls["shop"]
        GO_ON.set()
        calls.threads.shutdown(wait=True)

    assert cleared(ledger) == 0


def test_a_route_that_waits_too_long_keeps_no_locks(shown, ledger, database, monkeypatch):
    monkeypatch.setattr(plugin_session, "GRACE_SECONDS", 0.2)
    with database.begin() as connection:
        connection.execute(text("INSERT INTO rota_audit (actor, via, action, target) VALUES ('held', 'x', 'x', 'x')"))

    def is_free():
        with database.begin() as connection, suppress(OperationalError):
            return connection.scalar(text("SELECT true FROM rota_audit WHERE actor = 'held' FOR UPDATE NOWAIT"))

    headers = shown()
    with shop(seconds=1.0) as client:
        assert client.post(f"{PREFIX}/hold", headers=headers).json()["code"] == "plugin-too-slow"
        assert HOLDS.wait(PATIENCE_SECONDS)
        eventually(is_free)  # while the function still waits
        assert client.get(f"{PREFIX}/shelves", headers=headers).status_code == 200
        calls = client.calls["shop"]
        GO_ON.set()
        calls.threads.shutdown(wait=True)

    assert ledger.value("SELECT via FROM rota_audit WHERE actor = 'held'") == "x"


def test_more_calls_than_a_plugin_may_have_are_refused(database):
    async def ask(calls):
        hanging = [asyncio.ensure_future(calls.answer(work, is_reading=True)) for _ in range(plugin_calls.MOST_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(PluginBusy, match="4 requests for the plugin shop are in progress"):
            await calls.answer(work, is_reading=True)
        GO_ON.set()
        await asyncio.gather(*hanging)
        assert await calls.answer(work, is_reading=True) == b"1"

    def work(_session):
        GO_ON.wait(60)
        return b"1"

    with plugin_calls.opened(settings.load(), "shop") as calls:
        asyncio.run(ask(calls))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (without_session, "is not annotated as a sqlalchemy.orm.Session"),
        (without_answer, "has no return annotation; add one, such as `-> None`"),
        (without_schema, "Invalid args for"),
        (coroutine, "is not a plain function"),
        (Shelf, "is not a plain function"),
    ],
)
def test_a_wrong_function_takes_away_the_routes_of_its_plugin_alone(shown, caplog, function, problem):
    setattr(sys.modules[MODULE], function.__name__, function)
    wrong = replace(SHOP, routes=(*ROUTES, route("POST", "/wrong", function, "operator")))
    headers = shown()
    with shop(wrong, OTHER) as client:
        assert client.get(f"{PREFIX}/shelves", headers=headers).status_code == 404
        assert client.get("/api/v1/plugins/other/shelves", headers=headers).status_code == 200
        assert PREFIX not in str(client.openapi()["paths"])

    (event,) = [record.msg for record in caplog.records if isinstance(record.msg, WebRoutesBroken)]
    assert (event.plugin, problem in event.error) == ("shop", True), event.error
    with (
        pytest.raises(PluginError, match="the routes of plugin shop cannot be served"),
        shop(wrong, strict_plugins=True),
    ):
        pass


def test_the_routes_of_a_broken_or_disabled_plugin_are_gone(shown):
    headers = shown()
    for gone in (replace(SHOP, error="broken"), Plugin("shop", "", "", is_disabled=True)):
        with shop(gone) as client:
            assert client.get(f"{PREFIX}/shelves", headers=headers).status_code == 404
            assert PREFIX not in str(client.openapi()["paths"])


def test_a_refused_call_is_logged(shown, caplog):
    with shop() as client:
        client.delete(f"{PREFIX}/shelves", headers=shown("viewer"))

    assert [record.msg.code for record in caplog.records if isinstance(record.msg, WebRefused)] == ["forbidden"]
