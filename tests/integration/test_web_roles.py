"""Each role calls each route of the OpenAPI document, so routes that are added later are tested as well."""

import pprint
from datetime import UTC, datetime, timedelta
from functools import partial

import hypothesis
import pytest
import schemathesis
from schemathesis.core.failures import FailureGroup
from sqlalchemy import text

from core import every, job
from core.jobs.registry import Plugin, Registry
from core.ledger.audit import Actor
from core.operations import pauses, tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.web import app
from tests.support.web import bearer, serving

ROLES = ("viewer", "operator", "admin")
DOCUMENT = app.make(None).openapi()
ROUTES = [
    (method, path) for path, found in DOCUMENT["paths"].items() for method in found if not path.startswith("/health")
]
#: Values for path parameters, and for required query parameters.
PLACES = {"plan_id": "1", "session_id": "1", "run_id": "1", "name": "close-day"}
QUERY = {
    "/api/v1/jobs/{name}/slots": {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00Z"},
    "/api/v1/why": {"job": "close-day", "at": "03:00"},
    "/api/v1/pauses": {"scope": "everything"},
}
#: A valid body for each route that changes something.
BODIES = {
    ("post", "/api/v1/runs"): {"job": "close-day"},
    ("post", "/api/v1/runs/{run_id}/retry"): None,
    ("post", "/api/v1/runs/{run_id}/drop"): None,
    ("post", "/api/v1/runs/{run_id}/cancel"): None,
    ("post", "/api/v1/pauses"): {"scope": "job:close-day"},
    ("delete", "/api/v1/pauses"): None,
    ("post", "/api/v1/schedules/pause"): {"job": "close-day", "key": "1"},
    ("post", "/api/v1/schedules/resume"): {"job": "close-day", "key": "1"},
    ("post", "/api/v1/orphans/adopt"): {"job": "close-day"},
    ("post", "/api/v1/schedules/sync"): {"job": "close-day"},
    ("post", "/api/v1/reconcile"): None,
    ("post", "/api/v1/plans"): {"action": "retry", "select": {"job": "close-day"}},
    ("post", "/api/v1/plans/{plan_id}/execute"): {"digest": "sha256:0"},
    ("post", "/api/v1/operations/{plan_id}/cancel"): None,
    ("post", "/api/v1/cache/cleanup/orphaned-tasks"): None,
    ("post", "/api/v1/cache/cleanup/full"): None,
    ("post", "/admin/celery/tasks/sync"): None,
    ("post", "/admin/celery/tasks/{run_id}/retry"): None,
    ("post", "/admin/email-worker/sync"): None,
    ("post", "/api/v1/tokens"): {"name": "new"},
    ("delete", "/api/v1/tokens/{name}"): None,
    ("delete", "/api/v1/sessions/{session_id}"): None,
}
#: The least role of each route, if it is not that of its method.
FOR_ADMINS = {
    "/api/v1/tokens",
    "/api/v1/tokens/{name}",
    "/api/v1/sessions",
    "/api/v1/sessions/{session_id}",
    "/api/v1/schedules/sync",
    "/admin/email-worker/sync",
    "/api/v1/cache/cleanup/full",
}
NEEDS = dict.fromkeys([route for route in ROUTES if route[1] in FOR_ADMINS], "admin")


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    """Close the day."""


@pytest.fixture(autouse=True)
def registry(database):
    with loading.using(Registry((Plugin("billing", "", "", (close_day,)), Plugin("mail", "", "")))) as registry:
        yield registry


@pytest.fixture
def client():
    with serving(per_minute=10**9, failures_per_minute=10**9) as client:
        yield client


@pytest.fixture
def headers(database):
    return partial(bearer, database)


def call(client, method, path, headers):
    body = BODIES.get((method, path))
    return client.request(
        method,
        path.format(**PLACES),
        params=QUERY.get(path),
        headers=headers,
        **({} if body is None else {"json": body}),
    )


def test_the_document_has_what_the_tables_here_have():
    assert {route for route in ROUTES if route[0] != "get"} == set(BODIES)
    assert len(ROUTES) > 30


@pytest.mark.parametrize("role", [None, *ROLES])
def test_each_role_may_call_what_it_is_for(client, headers, role):
    """The runs and keys in the bodies do not exist, so an allowed request fails with another error than a refusal."""
    shown = headers(role) if role else {}
    wrong = {}
    for method, path in ROUTES:
        least = NEEDS.get((method, path), "viewer" if method == "get" else "operator")
        answer = call(client, method, path, shown)
        if role is None:
            is_right = answer.status_code == 401
        elif ROLES.index(role) < ROLES.index(least):
            is_right = answer.status_code == 403 and answer.json()["code"] == "forbidden"
        else:
            is_right = answer.status_code in {200, 201, 204, 404, 409}
        if not is_right:
            wrong[method, path] = (answer.status_code, answer.text)

    assert not wrong


def operations(schema):
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ROLES)
def test_no_request_gives_a_server_error_or_an_answer_that_is_not_documented(
    client, headers, ledger, start_process, role
):
    for kind in ("worker", "scheduler"):  # otherwise the health would be a 503
        start_process(kind=kind)
    ledger.request("close-day", queue="billing")
    schema = schemathesis.openapi.from_dict(client.openapi())
    schema.app = client.application
    shown = headers(role)
    failed = {}
    for operation in operations(schema):

        @hypothesis.settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(headers=shown)

        try:
            check()
        except FailureGroup as error:
            failed[operation.label] = [str(each) for each in error.exceptions]
    assert not failed, pprint.pformat(failed, width=200)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("limits", [{"plugins": ["mail"]}, {"queues": ["mail"]}], ids=str)
def test_a_caller_with_limits_neither_sees_nor_changes_other_jobs(client, database, ledger, role, limits):
    """Every route of the document, with a role and a limit that does not cover the job of the bodies."""
    for state in ("dead", "orphaned", "queued"):
        done = {} if state == "queued" else {"finished_at": datetime(2026, 1, 1, tzinfo=UTC)}
        ledger.request("close-day", queue="billing", state=state, error="of close-day", **done)
    with database.begin() as connection:
        pauses.begin(connection, loading.current(), "job:close-day", Actor("ann", "cli"))
        wanted = Wanted(f"limited-{role}", role, lasting=timedelta(days=1))
        secret = tokens.create(connection, wanted, Actor("ann", "cli")).token
        for column, names in limits.items():
            connection.execute(text(f"UPDATE rota_credentials SET {column} = :names"), {"names": names})
    before = ledger.rows("SELECT id, state FROM rota_runs ORDER BY id")

    wrong = {}
    for method, path in ROUTES:
        answer = call(client, method, path, {"Authorization": f"Bearer {secret}"})
        is_shown = answer.status_code < 300 and "close-day" in answer.text
        is_changed = method != "get" and answer.status_code < 300
        if is_shown or is_changed or answer.status_code >= 500:
            wrong[method, path] = (answer.status_code, answer.text[:300])

    assert not wrong
    assert ledger.rows("SELECT id, state FROM rota_runs ORDER BY id") == before
    assert ledger.value("SELECT count(*) FROM rota_pauses") == 1
