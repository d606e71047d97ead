"""Bad input to the HTTP service: it is refused in words, or means only itself, and delays nobody else."""

import asyncio
import time
import zlib
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from core import job
from core.ledger.audit import Actor
from core.operations import tokens
from core.operations.tokens import Wanted
from core.web import envelope
from core.web.envelope import Envelope
from tests.support.web import bearer

ADMIN = Actor("ann", "cli")
#: It has the right form and checksum, and belongs to nobody.
FORGED = f"rota_session_{'0' * 64}_{zlib.crc32(b'rota_session_' + b'0' * 64):08x}"
#: Keys that a careless path, page, log or query would change.
KEYS = [
    "a/b",
    "../../tokens",
    "<script>alert(1)</script>",
    "line\nbreak",
    "\u202egnp.exe",
    "%2F%00",
    "' OR 1=1 --",
    "é" * 100,
]


@job("count", queue="default")
def count(run, number: int = 0):
    """Count."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(count)


@pytest.fixture
def operator(database):
    with database.begin() as connection:
        return {"Authorization": f"Bearer {tokens.create(connection, Wanted('ops', 'operator'), ADMIN).token}"}


@pytest.mark.parametrize("forged", ["", "x", "rota_session_x_00000000", "é", "x" * 4000, FORGED])
@pytest.mark.parametrize("name", ["rota", "__Host-rota"])
def test_a_forged_cookie_is_refused(client, forged, name):
    answer = client.get("/api/v1/me", headers=[(b"Cookie", f"{name}={forged}".encode())])

    assert (answer.status_code, answer.json()["code"]) == (401, "not-authenticated")
    assert len(forged) < 3 or forged not in answer.text


def test_no_secret_can_be_used_as_another_kind(client, database):
    with database.begin() as connection:
        token = tokens.create(connection, Wanted("ops"), ADMIN).token
        link = tokens.link(connection, ADMIN)
        session = tokens.log_in(connection, token)

    for secret in (link, session):
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    for secret in (link, token):
        assert client.get("/api/v1/me", headers={"Cookie": f"rota={secret}"}).status_code == 401
    assert client.get("/api/v1/me", headers={"Cookie": f"rota={session}"}).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_a_key_means_itself(client, operator, key):
    made = client.post("/api/v1/runs", json={"job": "count", "key": key}, headers=operator)
    assert made.status_code == 201

    (found,) = client.get("/api/v1/runs", params={"job": "count", "key": key}, headers=operator).json()["items"]
    assert (found["id"], found["key"]) == (made.json()["id"], key)
    lines = client.get("/api/v1/runs.ndjson", params={"job": "count", "key": key}, headers=operator).text
    assert len(lines.splitlines()) == 1  # a line break in a key does not break the line


@pytest.mark.parametrize("key", [r"a\u0000b", r"\ud800", "x" * 501])
def test_a_key_that_cannot_be_stored_is_refused(client, operator, key):
    body = f'{{"job": "count", "key": "{key}"}}'

    answer = client.post("/api/v1/runs", content=body, headers={**operator, "Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**60) - 1])
def test_a_large_number_is_not_changed(client, operator, number):
    made = client.post("/api/v1/runs", json={"job": "count", "args": {"number": number}}, headers=operator).json()

    assert f'"number":{number}' in client.get(f"/api/v1/runs/{made['id']}", headers=operator).text


@pytest.mark.parametrize("number", [2**63, 10**400])
def test_a_number_of_a_run_that_no_run_has_is_refused(client, operator, number):
    assert client.get(f"/api/v1/runs/{number}", headers=operator).status_code == 422


@pytest.mark.parametrize("search", ["(a+)+$", "%", "_", "\\", "[x]", ".*"])
def test_a_search_is_no_pattern(client, operator, ledger, search):
    given = {"state": "dead", "reason": "retries", "finished_at": datetime(2026, 1, 1, tzinfo=UTC)}
    ledger.request("count", error="aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", **given)
    wanted = ledger.request("count", error=f"before {search} after", **given)

    found = client.get("/api/v1/runs", params={"state": "dead", "error": search}, headers=operator).json()["items"]

    assert [run["id"] for run in found] == [wanted]


@pytest.mark.parametrize(
    "at", ["0001-01-01T00:00+00:00", "0001-01-01T00:00", "2199-12-31T23:59+00:00", "9999-12-31T23:59+00:00"]
)
@pytest.mark.parametrize(
    "path",
    [
        "/why?job=count&at={}",
        "/api/v1/why?job=count&at={}",
        "/api/v1/jobs/count/statistics?since={}",
        "/api/v1/jobs/count/statistics?until={}",
        "/api/v1/jobs/count/slots?from={}&to={}",
        "/api/v1/jobs/count/slots?from=2026-01-01T00:00Z&to={}",
        "/api/v1/jobs/count/slots?from=9999-12-01T00:00Z&to={}",
        "/api/v1/runs?since={}&until=2h",
        "/runs?until={}",
        "/audit?since={}",
    ],
)
def test_a_time_at_the_end_of_the_calendar_is_no_fault_of_the_service(client, operator, path, at):
    answer = client.get(path.replace("{}", quote(at)), headers=operator)

    assert answer.status_code < 500, answer.text


def test_a_nul_is_refused_wherever_a_name_is_sent(client, database):
    admin = {**bearer(database, "admin"), "Sec-Fetch-Site": "same-origin"}

    for path, sent in (
        ("/tokens/revoke", {"name": "a\0b"}),
        ("/schedules/count/run", {"once": "a\0b"}),
        ("/schedules/count/run", {"key": "a\0b"}),
        ("/jobs/count/runs", {"once": "a\0b"}),
    ):
        assert client.post(path, data=sent, headers=admin).status_code == 422, path
    assert client.delete("/api/v1/tokens/%00", headers=admin).status_code == 422


async def answered(application, receive):
    """Return the status of a request whose body comes from ``receive``."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/v1/runs", "headers": [], "root_path": ""}
    await application(scope, receive, send)
    return sent[0]["status"]


def test_a_slow_body_is_given_up_and_delays_no_other(monkeypatch):
    monkeypatch.setattr(envelope, "BODY_SECONDS", 0.5)

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def drip():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def whole():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def both():
        application = Envelope(app)
        slow = asyncio.ensure_future(answered(application, drip))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await answered(application, whole) == 204
        assert time.monotonic() - began < 0.4
        return await slow

    assert asyncio.run(both()) == 408
