"""Plans and operations over HTTP, and the old addresses for cleaning up Redis."""

from functools import partial

import pytest
import redis

from core import database as databases
from core import job, settings
from core.jobs.registry import Plugin, Registry
from core.ledger import identity, releases
from core.ledger.audit import Actor
from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.operations import leftovers, tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.transport.messages import fast_message, run_message
from core.transport.redis import Queues, ownership
from core.upkeep import carry_out_operation
from tests.support.web import bearer, serving

LONG_AGO = 1_700_000_000_000
AT = "2026-01-01T00:00Z"


@job("work", queue="default")
def work(run):
    """Work."""


@job("hear", ledger=False)
def hear(run, word: str):
    """Hear."""


@pytest.fixture(autouse=True)
def registry(environment, database):
    plugins = (Plugin("tests", "", "", (work, hear)), Plugin("core", "", "", (carry_out_operation,)))
    with loading.using(Registry(plugins)) as registry:
        with databases.autocommit(database) as connection:
            releases.record(connection, releases.of(registry))
        yield registry


@pytest.fixture
def client(registry):
    with serving() as client:
        yield client


@pytest.fixture
def caller(database):
    return partial(bearer, database)


def test_a_plan_is_made_shown_confirmed_and_cancelled(client, caller, ledger):
    operator, viewer = caller("operator"), caller("viewer")
    ids = [ledger.request("work", state="dead", finished_at=AT) for _ in range(3)]
    asked = {"action": "retry", "select": {"job": "work", "until": "2026-02-01T00:00Z"}, "rate": 1, "reason": "mended"}

    made = client.post("/api/v1/plans", json=asked, headers=operator)

    assert made.status_code == 201
    plan = made.json()
    assert [run["id"] for run in plan["runs"]] == ids
    assert client.get(f"/api/v1/plans/{plan['id']}", headers=viewer).json() == plan
    assert client.get("/api/v1/operations", headers=viewer).json() == {"items": [], "next": None}
    confirming = f"/api/v1/plans/{plan['id']}/execute"
    assert client.post(confirming, json={"digest": plan["digest"]}, headers=viewer).status_code == 403
    refused = client.post(confirming, json={"digest": "sha256:0"}, headers=operator)
    assert (refused.status_code, refused.json()["code"]) == (409, "confirmation-required")

    done = client.post(confirming, json={"digest": plan["digest"]}, headers=operator)

    assert (done.status_code, done.json()["state"]) == (202, "running")
    assert client.post(confirming, json={"digest": plan["digest"]}, headers=operator).json() == done.json()
    assert len(ledger.runs("carry-out-operation")) == 1
    of = f"/api/v1/operations/{plan['id']}"
    assert client.get(of, headers=viewer).json() == done.json()
    assert client.get("/api/v1/operations", headers=viewer).json()["items"] == [done.json()]
    assert client.get(f"{of}/left-out", headers=viewer).json() == {"items": [], "next": None}
    (entry,) = ledger.rows("SELECT * FROM rota_audit WHERE action = 'retry'")
    assert (entry.actor, entry.via, entry.details["planned"], entry.details["why"]) == (
        "the-operator",
        "http",
        3,
        "mended",
    )
    assert entry.details["until"] == "2026-02-01T00:00:00+00:00"
    assert {"token", "request", "address"} <= entry.details.keys()
    assert client.post(f"{of}/cancel", headers=viewer).status_code == 403
    assert client.post(f"{of}/cancel", headers=operator).json()["state"] == "cancelled"
    assert client.post(confirming, json={"digest": plan["digest"]}, headers=operator).status_code == 409


@pytest.mark.parametrize(
    "asked",
    [
        {"action": "retry"},
        {"action": "retry", "select": {}},
        {"action": "retry", "select": {"limit": 5}},
        {"action": "drop", "select": {"job": "work", "state": "succeeded"}},
        {"action": "cleanup", "select": {"job": "work"}},
    ],
)
def test_a_selection_of_everything_and_one_that_does_not_fit_are_refused(client, caller, ledger, asked):
    ledger.request("work", state="dead", finished_at=AT)

    answer = client.post("/api/v1/plans", json=asked, headers=caller("admin"))

    assert (answer.status_code, answer.json()["code"]) == (409, "selection")
    assert ledger.rows("SELECT * FROM rota_operations") == []


def test_arguments_of_the_sample_are_hidden_and_errors_are_not_searched_by_those_who_may_not_see_them(
    client, database, ledger
):
    ledger.request("work", state="dead", finished_at=AT, error="about jim@example.org")
    with database.begin() as connection:
        wanted = Wanted("blind", "operator", sees_arguments=False)
        secret = tokens.create(connection, wanted, Actor("ann", "cli")).token
    asked = {"action": "retry", "select": {"job": "work", "error": "jim"}}

    answer = client.post("/api/v1/plans", json=asked, headers={"Authorization": f"Bearer {secret}"})

    assert answer.status_code == 403


@pytest.fixture
def box(redis_url, database, ledger):
    """A Redis with a message of a run that has ended, and a dead letter of a known job."""
    client = redis.Redis.from_url(redis_url)
    with database.connect() as connection:
        ownership.claim(client, identity.of(connection))
    queues = Queues(client)
    run_id = ledger.request("work", state="succeeded", finished_at=AT)
    queues.enqueue_many(
        [fast_message(OutgoingMessage("hear", "default", {"word": "hi"})).copy(message_timestamp=LONG_AGO)]
    )
    queues.fetch("default", 1)
    (dead,) = queues.fetched("default")
    queues.dead_letter("default", [dead])
    client.zadd("dramatiq:default.XQ", {dead: LONG_AGO})
    queues.enqueue_many([run_message(OutgoingRun(run_id, "work", "default")).copy(message_timestamp=LONG_AGO)])
    yield client
    client.close()


@pytest.mark.parametrize(("address", "role"), [("orphaned-tasks", "operator"), ("full", "admin")])
def test_the_old_addresses_clean_redis_when_the_plan_is_confirmed(client, caller, box, ledger, address, role):
    headers, path = caller(role), f"/api/v1/cache/cleanup/{address}"

    asked = client.post(path, headers=headers)

    assert (asked.status_code, asked.json()["code"]) == (409, "confirmation-required")
    plan = asked.json()["plan"]
    assert plan["by_job"] == {"run ended": 1} | ({"dead letter": 1} if address == "full" else {})
    assert len(plan["leftovers"]) == plan["total"]
    if address == "full":
        refused = client.post(path, json={"confirm": plan["digest"]}, headers=headers)
        assert "remove 2 leftovers" in refused.json()["detail"]

    done = client.post(path, json={"confirm": plan["digest"], "phrase": "remove 2 leftovers"}, headers=headers)

    assert (done.status_code, done.json()["state"], done.json()["action"]) == (202, "running", "cleanup")
    assert done.headers["Deprecation"] == "@1795824000"
    assert done.headers["Link"] == '</api/v1/plans>; rel="successor-version"'
    assert box.hlen("dramatiq:default.msgs") == 1  # a worker removes it


def test_leftovers_are_listed_for_those_who_may_see_all_jobs(client, caller, box, database):
    found = client.get("/api/v1/orphans/messages", headers=caller("viewer")).json()
    with database.begin() as connection:
        wanted = Wanted("limited", "operator", plugins=["tests"])
        secret = tokens.create(connection, wanted, Actor("ann", "cli")).token

    assert {each["kind"] for each in found["counts"]} == {"run ended", "dead letter"}
    limited = {"Authorization": f"Bearer {secret}"}
    assert client.get("/api/v1/orphans/messages", headers=limited).status_code == 403
    assert client.post("/api/v1/plans", json={"action": "cleanup"}, headers=limited).status_code == 403


def test_what_is_planned_is_packed_and_unpacked_without_a_change(box, database, registry):
    with database.connect() as connection:
        found = leftovers.look(connection, registry, settings.load()).found

    assert found
    assert [leftovers.unpacked(leftovers.packed(each)) for each in found] == found
