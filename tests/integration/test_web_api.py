"""The API: its answers, its changes, the role that each route needs, and its refusals."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest

from core import Secret, every, job
from core.jobs.registry import Plugin, Registry
from core.ledger import queues
from core.plugins import loading
from tests.support.web import bearer, serving

AT = datetime(2026, 1, 15, tzinfo=UTC)
API = "/api/v1"


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk", pin: Annotated[str, Secret] = "0000", counts: list[int] | None = None):
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
def token(database):
    """Return a function that makes the headers of a caller with a role."""

    return lambda role, name=None, **limits: bearer(database, role, name or role, **limits)


@pytest.fixture
def operator(token):
    return token("operator")


def dead(ledger, count=1, *, job="close-day", queue="billing", **columns):
    given = {"state": "dead", "reason": "retries", "finished_at": AT, "queued_at": AT, **columns}
    return [ledger.request(job, queue=queue, **given) for _ in range(count)]


class TestLists:
    def walk(self, client, headers, **asked):
        """Return the ids on all pages."""
        found, cursor = [], None
        while True:
            page = client.get(
                f"{API}/runs", params={**asked, **({"cursor": cursor} if cursor else {})}, headers=headers
            )
            assert page.status_code == 200, page.text
            found += [run["id"] for run in page.json()["items"]]
            cursor = page.json()["next"]
            if cursor is None:
                return found

    @pytest.mark.parametrize(
        "asked",
        [{}, {"state": "dead"}, {"job": "close-day"}, {"since": "2026-01-01"}, {"since": "2026-01-01", "job": "poll"}],
        ids=str,
    )
    def test_the_pages_together_are_the_list(self, client, operator, ledger, asked):
        """This includes runs of the same instant, which a cursor with only the time would miss."""
        dead(ledger, 7)
        dead(ledger, 7, job="poll", queue="mail")
        for _ in range(3):
            ledger.request("poll", queue="mail", queued_at=AT)
        dead(ledger, 4, finished_at=AT + timedelta(seconds=1))

        whole = self.walk(client, operator, **asked, limit=200)

        assert len(whole) == len(set(whole)) >= 10
        assert self.walk(client, operator, **asked, limit=3) == whole

    @pytest.mark.parametrize("cursor", ["x", "W10", "e30", "é", "A" * 400, "WzEsImEiLDEsbnVsbF0"])
    def test_a_cursor_that_is_not_ours_is_refused_in_words(self, client, operator, cursor):
        answer = client.get(f"{API}/runs", params={"cursor": cursor}, headers=operator)

        assert (answer.status_code, answer.json()["code"]) == (409, "selection")
        assert "begin with the first page" in answer.json()["detail"]

    def test_a_cursor_of_another_filter_is_refused(self, client, operator, ledger):
        dead(ledger, 3)
        cursor = client.get(f"{API}/runs?limit=1", headers=operator).json()["next"]

        answer = client.get(f"{API}/runs", params={"cursor": cursor, "state": "dead"}, headers=operator)

        assert "other conditions" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("asked", "status"),
        [
            ({"limit": 10_000_000}, 422),
            ({"limit": 0}, 422),
            ({"state": "finished"}, 422),
            ({"job": "a\0b"}, 422),
            ({"job": "nothing"}, 404),
            ({"job": "clsoe-day"}, 404),
            ({"key": "42"}, 200),
            ({"arg": "region"}, 409),
            ({"arg": ":xy"}, 409),
            ({"arg": "a..b:x"}, 409),
            ({"arg": "region:[[[[[["}, 200),
            ({"arg": "region:1e999"}, 200),
            ({"since": "yesterday"}, 409),
            ({"error": "(("}, 200),
            ({"job": "close-day", "key": "a/b<script>\n\u202e"}, 200),
        ],
        ids=str,
    )
    def test_odd_conditions(self, client, operator, asked, status):
        answer = client.get(f"{API}/runs", params=asked, headers=operator)

        assert answer.status_code == status, answer.text
        assert status == 200 or answer.json()["detail"]

    def test_a_whole_list_is_streamed(self, client, operator, ledger):
        dead(ledger, 12, error="=cmd|' /C calc'!A0")
        ids = self.walk(client, operator)

        as_csv = client.get(f"{API}/runs.csv", params={"state": "dead"}, headers=operator)
        as_lines = client.get(f"{API}/runs.ndjson", params={"limit": 5}, headers=operator)
        assert as_lines.headers["X-Accel-Buffering"] == "no"

        rows = list(csv.DictReader(io.StringIO(as_csv.text)))
        assert [int(row["id"]) for row in rows] == ids
        assert {row["error"][:2] for row in rows} == {"'="}
        assert [json.loads(line)["id"] for line in as_lines.text.splitlines()] == ids[:5]
        assert client.get(f"{API}/runs.csv?job=nothing", headers=operator).status_code == 404


class TestOneRun:
    def test_in_full_with_its_attempts_and_why(self, client, operator, ledger):
        (run_id,) = dead(ledger, error="ValueError: boom", attempt=1, args='{"region": "uk", "pin": "9876"}')
        ledger.do(
            "INSERT INTO rota_attempts (run_id, attempt, outcome, log) VALUES (:id, 1, 'failed', 'a line')",
            id=run_id,
        )

        found = client.get(f"{API}/runs/{run_id}", headers=operator).json()
        story = client.get(f"{API}/runs/{run_id}/why", headers=operator).json()

        assert (found["state"], found["args"]) == ("dead", {"region": "uk", "pin": "(hidden)"})
        assert [(each["outcome"], each["log"]) for each in found["attempts"]] == [("failed", "a line")]
        assert "boom" in " ".join(story["answer"])

    def test_a_viewer_sees_no_argument_wherever_it_stands(self, client, token, ledger):
        (run_id,) = dead(
            ledger, args='{"region": "customer-77"}', error="no such customer-77", result='{"of": "customer-77"}'
        )
        viewer, trusted = token("viewer"), token("viewer", "trusted", sees_arguments=True)
        paths = [f"/runs/{run_id}", f"/runs/{run_id}/why", "/runs", "/failures?hours=8784", "/runs.csv", "/runs.ndjson"]

        assert not [path for path in paths if "customer-77" in client.get(f"{API}{path}", headers=viewer).text]
        assert "customer-77" in client.get(f"{API}/runs/{run_id}", headers=trusted).text

    @pytest.mark.parametrize("path", ["/runs", "/runs.csv", "/runs.ndjson"])
    def test_a_viewer_cannot_find_out_an_argument_by_a_search_in_errors(self, client, token, path):
        answer = client.get(f"{API}{path}?error=customer-77", headers=token("viewer"))

        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert client.get(f"{API}{path}?error=customer-77", headers=token("operator")).status_code == 200

    def test_a_run_that_is_not_there_is_a_404(self, client, operator):
        answer = client.get(f"{API}/runs/{2**63 - 1}", headers=operator)

        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-run")
        assert client.get(f"{API}/runs/{2**63}", headers=operator).status_code == 422


class TestChanges:
    def test_a_dead_run_is_retried_and_dropped_and_the_audit_says_who(self, client, operator, ledger):
        (run_id,) = dead(ledger)

        retried = client.post(f"{API}/runs/{run_id}/retry", headers=operator)
        dropped = client.post(f"{API}/runs/{run_id}/drop", headers=operator)
        again = client.post(f"{API}/runs/{run_id}/drop", headers=operator)

        assert (retried.json()["state"], dropped.json()["reason"]) == ("retrying", "dropped")
        assert (again.status_code, again.json()["detail"]) == (
            409,
            f"run {run_id} was dropped already; nothing was changed",
        )
        rows = ledger.rows(
            "SELECT actor, via, action, details FROM rota_audit WHERE action IN ('retry', 'drop') ORDER BY id"
        )
        assert [(row.actor, row.via, row.action) for row in rows] == [
            ("operator", "http", "retry"),
            ("operator", "http", "drop"),
        ]
        assert {"token", "request", "address"} <= rows[0].details.keys()

    def test_a_waiting_run_is_cancelled_with_a_reason(self, client, operator, ledger):
        run_id = ledger.request("close-day", queue="billing")

        answer = client.post(f"{API}/runs/{run_id}/cancel", json={"reason": "wrong list"}, headers=operator)

        assert (answer.status_code, answer.json()["reason"]) == (200, "cancelled")
        assert ledger.value("SELECT details ->> 'why' FROM rota_audit WHERE action = 'cancel'") == "wrong list"

    def test_a_run_is_requested(self, client, operator, ledger):
        wanted = {"job": "close-day", "key": "a/b", "args": {"region": "fr", "counts": [2**60]}}
        answer = client.post(f"{API}/runs", json=wanted, headers=operator)

        assert answer.status_code == 201
        run = ledger.run(answer.json()["id"])
        assert (run.key, run.args) == ("a/b", {"region": "fr", "counts": [2**60]})

    def test_a_misfit_names_the_argument_and_not_its_value(self, client, operator):
        for args in ({"region": 5}, {"regoin": "uk"}, {"pin": 98765}):
            answer = client.post(f"{API}/runs", json={"job": "close-day", "args": args}, headers=operator)
            assert (answer.status_code, answer.json()["code"]) == (409, "bad-arguments")
            assert next(iter(args)) in answer.json()["detail"]
            assert "98765" not in answer.text

    def test_the_same_request_counts_once(self, client, operator, token, ledger):
        headers = {**operator, "Idempotency-Key": "k1"}
        with ThreadPoolExecutor(4) as pool:
            answers = list(
                pool.map(lambda _: client.post(f"{API}/runs", json={"job": "poll"}, headers=headers), range(4))
            )

        assert [answer.status_code for answer in answers] == [201] * 4
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum(answer.json()["is_new"] for answer in answers) == 1
        other = client.post(f"{API}/runs", json={"job": "close-day"}, headers=headers)
        assert (other.status_code, "belongs to another request" in other.text) == (409, True)
        others = {**token("operator", "ben"), "Idempotency-Key": "k1"}
        assert client.post(f"{API}/runs", json={"job": "poll"}, headers=others).json()["is_new"]
        assert len(ledger.runs("poll")) == 2

    def test_a_pause_begins_and_ends(self, client, operator):
        begun = client.post(
            f"{API}/pauses", json={"scope": "job:poll", "reason": "tests", "minutes": 5}, headers=operator
        )
        assert (begun.status_code, begun.json()["pause"]["reason"]) == (201, "tests")
        assert [each["scope"] for each in client.get(f"{API}/pauses", headers=operator).json()] == ["job:poll"]
        assert client.delete(f"{API}/pauses?scope=job:poll", headers=operator).status_code == 204
        assert client.get(f"{API}/pauses", headers=operator).json() == []
        assert client.delete(f"{API}/pauses?scope=job:poll", headers=operator).status_code == 409

    def test_orphans_are_adopted(self, client, operator, ledger):
        dead(ledger, 2, state="orphaned", reason="absent", former_state="queued")

        assert client.get(f"{API}/orphans", headers=operator).json()["counts"][0]["runs"] == 2
        assert client.post(f"{API}/orphans/adopt", json={"job": "close-day"}, headers=operator).json() == {"runs": 2}

    def test_no_change_is_audited_that_was_refused(self, client, token, ledger):
        (run_id,) = dead(ledger)
        viewer = token("viewer")
        before = ledger.value("SELECT count(*) FROM rota_audit")

        for path in (f"/runs/{run_id}/retry", f"/runs/{run_id}/drop", "/orphans/adopt", "/runs"):
            answer = client.post(f"{API}{path}", json={"job": "close-day"}, headers=viewer)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        assert ledger.value("SELECT count(*) FROM rota_audit") == before
        assert ledger.run(run_id).state == "dead"


class TestLimits:
    def test_a_caller_with_limits_sees_and_changes_their_own_jobs_alone(self, client, token, ledger):
        (theirs,), (other,) = dead(ledger), dead(ledger, job="poll", queue="mail")
        ben = token("operator", "ben", plugins=["billing"])

        assert [run["id"] for run in client.get(f"{API}/runs", headers=ben).json()["items"]] == [theirs]
        assert client.get(f"{API}/runs?job=poll", headers=ben).json()["items"] == []
        for path in (f"/runs/{other}", f"/runs/{other}/why"):
            assert client.get(f"{API}{path}", headers=ben).status_code == 404
        assert client.post(f"{API}/runs/{other}/drop", headers=ben).status_code == 403
        assert client.post(f"{API}/runs/{theirs}/drop", headers=ben).status_code == 200
        assert [each["name"] for each in client.get(f"{API}/jobs", headers=ben).json()] == ["close-day"]
        assert client.get(f"{API}/jobs/poll", headers=ben).status_code == 403
        assert [each["job"] for each in client.get(f"{API}/failures?hours=8784", headers=ben).json()["items"]] == []
        assert [each["name"] for each in client.get(f"{API}/queues", headers=ben).json()] == ["billing"]
        for path in ("/audit", "/releases", "/plugins", "/limits", "/releases/difference"):
            assert client.get(f"{API}{path}", headers=ben).status_code == 403
        assert str(other) not in [
            row["id"] for row in csv.DictReader(io.StringIO(client.get(f"{API}/runs.csv", headers=ben).text))
        ]


class TestTheRest:
    def test_the_arguments_of_a_job_have_a_schema_without_secrets(self, client, operator):
        found = client.get(f"{API}/jobs/close-day/arguments", headers=operator).json()

        assert found["properties"]["region"] == {"type": "string", "default": "uk"}
        assert found["properties"]["pin"] == {"type": "string", "writeOnly": True}
        assert found["properties"]["counts"]["anyOf"][0] == {"type": "array", "items": {"type": "integer"}}
        assert (found["required"], found["additionalProperties"]) == ([], False)

    def test_slots_are_those_on_record_and_those_of_the_schedule(self, client, operator, ledger):
        start = datetime(2026, 1, 15, 3, tzinfo=UTC)
        ledger.request("close-day", queue="billing", slot=start, state="missed", reason="grace", finished_at=AT)
        asked = {"from": start.isoformat(), "to": (start + timedelta(hours=3)).isoformat()}

        found = client.get(f"{API}/jobs/close-day/slots", params=asked, headers=operator).json()

        assert [each["outcome"] for each in found["items"]] == ["missed", "not on record", "not on record"]
        assert found["is_complete"]
        backwards = {"from": asked["to"], "to": asked["from"]}
        assert client.get(f"{API}/jobs/close-day/slots", params=backwards, headers=operator).status_code == 409

    def test_failures_of_one_kind_are_one_group(self, client, operator, ledger):
        now = datetime.now(UTC)
        for number in range(5):
            dead(ledger, finished_at=now, error=f"Timeout: host {number} gave 'x{number}'")
        dead(ledger, finished_at=now, error="ValueError: boom")
        dead(ledger, finished_at=now, reason="dropped", error="ValueError: boom")

        found = client.get(f"{API}/failures", headers=operator).json()

        assert [(each["runs"], each["error"][:7]) for each in found["items"]] == [(5, "Timeout"), (1, "ValueEr")]
        assert found["is_complete"]

    def test_queues_count_what_waits_and_runs(self, client, operator, ledger, process):
        ledger.request("close-day", queue="billing")
        ledger.request("close-day", queue="billing", due_at=datetime(2100, 1, 1, tzinfo=UTC))
        ledger.request("close-day", queue="billing", sent_at=AT)
        dead(ledger)

        billing, mail = client.get(f"{API}/queues", headers=operator).json()

        assert (billing["due"], billing["later"], billing["sent"], billing["running"]) == (1, 1, 1, 0)
        assert (mail["due"], mail["is_more"]) == (0, False)

    def test_the_oldest_run_is_found_beyond_what_is_counted(self, client, operator, ledger, monkeypatch):
        monkeypatch.setattr(queues, "MOST_COUNTED", 2)
        for day in (5, 4, 3):
            ledger.request("close-day", queue="billing", due_at=datetime(2026, 1, day, tzinfo=UTC))
        ledger.request("open-day", queue="billing", due_at=datetime(2026, 1, 2, tzinfo=UTC))
        ledger.request("open-day", queue="other", due_at=datetime(2026, 1, 1, tzinfo=UTC))
        ledger.request("open-day", queue="billing", due_at=datetime(2026, 1, 1, tzinfo=UTC), sent_at=AT)

        billing, mail = client.get(f"{API}/queues", headers=operator).json()

        assert (billing["due"], billing["oldest_due_at"]) == (2, "2026-01-02T00:00:00+00:00")
        assert mail["oldest_due_at"] is None

    @pytest.mark.parametrize(
        "path",
        ["/workers", "/limits", "/releases", "/releases/difference", "/plugins", "/audit", "/schedules", "/pauses"],
    )
    def test_each_list_answers(self, client, operator, start_process, path):
        start_process(jobs=[close_day], plugin="billing")

        assert client.get(f"{API}{path}", headers=operator).status_code == 200

    def test_the_page_of_the_document_has_no_script_and_every_route(self, client, operator):
        page = client.get("/api", headers=operator).text

        assert "<script" not in page
        assert "//" not in page.replace("<!--", "")
        assert not [path for path in client.openapi()["paths"] if path not in page]

    def test_the_document_names_the_prefix(self, operator):
        with serving(web_prefix="/rota") as client:
            found = client.get("/rota/api/v1/openapi.json", headers=operator).json()

        assert found["servers"] == [{"url": "/rota"}]
