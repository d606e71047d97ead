"""Searches by conditions that no index has: they are bounded, say how far they have looked, and leave nothing out."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest

from core import Secret, every, job
from core.ledger import search
from tests.support.web import bearer

AT = datetime(2026, 1, 15, tzinfo=UTC)
RUNS = "/api/v1/runs"


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk", pin: Annotated[str, Secret] = "0000", customer: dict | int | str = 0):
    """Close the day."""


@job("poll", queue="mail")
def poll(run, customer: int = 0):
    """Poll."""


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(close_day, poll)


@pytest.fixture
def operator(database):
    return bearer(database, "operator")


@pytest.fixture
def ask(client, operator):
    """Return a function that asks for a page of runs."""

    def ask(headers=operator, status=200, **asked):
        answer = client.get(RUNS, params=asked, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


@pytest.fixture
def walk(ask):
    """Return a function that returns the ids on all pages."""

    def walk(**asked):
        pages = [ask(**asked)]
        while pages[-1]["next"] is not None:
            pages.append(ask(**asked, cursor=pages[-1]["next"]))
        return [run["id"] for page in pages for run in page["items"]]

    return walk


@pytest.fixture
def history(ledger):
    """Return the ids of the runs whose error has a needle: every seventh of forty dead runs."""
    ledger.do(
        """INSERT INTO rota_runs (job, queue, state, reason, error, args, queued_at, finished_at)
           SELECT CASE n % 2 WHEN 0 THEN 'poll' ELSE 'close-day' END, 'mail', 'dead', 'retries',
                  CASE n % 7 WHEN 0 THEN 'a Needle' ELSE 'hay' END, jsonb_build_object('customer', n % 7),
                  t.at, t.at + (n + n % 2) * interval '1 second'
           FROM generate_series(1, 40) AS n, (SELECT CAST(:at AS timestamptz) AS at) AS t""",
        at=AT,
    )
    return {row.id for row in ledger.rows("SELECT id FROM rota_runs WHERE error = 'a Needle'")}


@pytest.fixture
def looks_at_few(monkeypatch):
    """Let a search stop after ten runs."""
    monkeypatch.setattr(search, "MOST_LOOKED_AT", 10)
    monkeypatch.setattr(search, "LARGEST", 5)


CONDITIONS = [{"error": "needle"}, {"error": "needle", "since": "2020-01-01"}, {"arg": "customer:0"},
              {"arg": "customer:0", "state": "dead"}]  # fmt: skip


@pytest.mark.parametrize("asked", CONDITIONS, ids=str)
@pytest.mark.parametrize("limit", [1, 3, 200])
def test_the_pages_of_a_search_together_have_every_run_once(walk, history, looks_at_few, asked, limit):
    """This includes runs of the same instant."""
    found = walk(**asked, limit=limit)

    assert len(found) == len(set(found))
    assert set(found) == history


def test_a_search_that_stops_early_says_how_far_it_has_looked(ask, history, looks_at_few):
    page = ask(error="nothing like it")

    assert page["items"] == []
    assert page["next"] is not None
    assert datetime.fromisoformat(page["searched_until"]) == AT + timedelta(seconds=32)


def test_a_search_stops_after_a_while(ask, history, looks_at_few, monkeypatch):
    monkeypatch.setattr(search, "MOST_LOOKED_AT", 10**9)
    monkeypatch.setattr(search, "LONGEST", timedelta(0))

    assert ask(error="nothing like it")["searched_until"] is not None


def test_a_list_that_needs_no_search_is_whole(ask, history, looks_at_few):
    page = ask(state="dead", limit=200)

    assert (len(page["items"]), page["next"], page["searched_until"]) == (40, None, None)


def test_an_export_goes_on_until_the_search_is_over(client, operator, history, looks_at_few):
    lines = client.get(f"{RUNS}.ndjson", params={"error": "needle"}, headers=operator).text.splitlines()

    assert {json.loads(line)["id"] for line in lines} == history


def test_a_key_is_found_in_all_jobs_whatever_became_of_its_runs(walk, ledger):
    wanted = {
        ledger.request("poll", key="42", state="succeeded", finished_at=AT),
        ledger.request("poll", key="42", state="running", started_at=AT),
        ledger.request("close-day", key="42"),
        ledger.request("close-day", key="42", state="missed", slot=AT, finished_at=AT),
        ledger.request("close-day", key="42", slot=AT + timedelta(hours=1)),
    }
    ledger.request("poll", key="43")
    ledger.request("poll")

    for asked in ({}, {"since": "2025-01-01"}):
        for limit in (1, 200):
            found = walk(key="42", limit=limit, **asked)
            assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(
    ("asked", "args"),
    [
        ("customer:42", {"customer": 42}),
        ("customer:42", {"customer": "42"}),
        ("customer.address.city:Leeds", {"customer": {"address": {"city": "Leeds", "road": 1}}}),
        ("region:a:b", {"region": "a:b"}),
        ("region:null", {"region": None}),
        ("region:%_'\\", {"region": "%_'\\"}),
    ],
)
def test_an_argument_is_found(ask, ledger, asked, args):
    wanted = ledger.request("close-day", args=json.dumps(args))
    ledger.request("close-day", args=json.dumps({"customer": 421, "region": "b"}))

    assert [run["id"] for run in ask(arg=asked)["items"]] == [wanted]


def test_all_arguments_must_fit(ask, ledger):
    wanted = ledger.request("close-day", args='{"customer": 1, "region": "uk"}')
    ledger.request("close-day", args='{"customer": 1, "region": "fr"}')

    assert [run["id"] for run in ask(arg=["customer:1", "region:uk"])["items"]] == [wanted]


@pytest.mark.parametrize("asked", ["pin:9876", "customer.pin:9876", "PIN:9876"])
@pytest.mark.parametrize("path", [RUNS, f"{RUNS}.csv"])
def test_nobody_can_search_by_a_secret(client, database, path, asked):
    for headers in (bearer(database, "admin"), bearer(database, "viewer", sees_arguments=True)):
        answer = client.get(path, params={"arg": asked}, headers=headers)

        assert (answer.status_code, answer.json()["code"]) == (409, "selection")
        assert "secret" in answer.json()["detail"]


def test_who_may_not_see_arguments_may_not_search_by_them(client, database):
    viewer = bearer(database, "viewer")

    assert client.get(RUNS, params={"arg": "region:uk"}, headers=viewer).status_code == 403


def test_arguments_of_a_job_that_is_not_loaded_are_not_searched(ask, ledger):
    ledger.request("gone", args='{"customer": 42}')

    assert ask(arg="customer:42")["items"] == []
    assert "not loaded" in ask(arg="customer:42", job="gone", status=409)["detail"]


def test_a_plan_selects_by_arguments(client, operator, ledger):
    wanted = ledger.request("poll", args='{"customer": 42}', queue="mail")
    ledger.request("poll", args='{"customer": 43}', queue="mail")
    body = {"action": "drop", "select": {"args": ["customer:42"]}}

    plan = client.post("/api/v1/plans", json=body, headers=operator)

    assert [run["id"] for run in plan.json()["runs"]] == [wanted]
    secret = {"action": "drop", "select": {"args": ["pin:1"]}}
    assert client.post("/api/v1/plans", json=secret, headers=operator).status_code == 409
