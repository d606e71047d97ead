"""The addresses of the systems that Rota replaces, and the metrics of the HTTP service."""

from datetime import UTC, datetime

import pytest

from core import job
from tests.support.web import bearer, serving

AT = datetime(2026, 1, 15, tzinfo=UTC)
#: Each old address, and the route to use instead.
OLD = {
    "/admin/celery/workers": "/api/v1/workers",
    "/admin/workers": "/api/v1/workers",
    "/admin/celery/tasks": "/api/v1/runs",
    "/api/v1/cache/status": "/api/v1/queues",
    "/api/v1/cache/celery-tasks": "/api/v1/orphans",
}


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def caller(database):
    return lambda role: bearer(database, role, role)


@pytest.fixture
def operator(caller):
    return caller("operator")


@pytest.mark.parametrize("path", OLD)
def test_an_old_address_answers_as_its_successor_does_and_names_it(client, operator, ledger, path):
    ledger.request("work")
    answer = client.get(path, headers=operator)

    assert answer.status_code == 200
    assert answer.headers["Deprecation"] == "@1795824000"
    assert answer.headers["Link"] == f'<{OLD[path]}>; rel="successor-version"'
    successor = client.get(OLD[path], headers=operator)
    assert answer.json() == successor.json() or answer.json()["queues"] == successor.json()


def test_a_run_is_retried_at_its_old_address(client, operator, ledger):
    run_id = ledger.request("work", state="dead", finished_at=AT)

    answer = client.post(f"/admin/celery/tasks/{run_id}/retry", headers=operator)

    assert answer.json()["state"] == "retrying"
    assert answer.headers["Link"] == f'</api/v1/runs/{run_id}/retry>; rel="successor-version"'


def test_a_sync_wakes_the_dispatcher(client, operator, database, ledger):
    ledger.request("work")
    with database.connect() as listener:
        listener.exec_driver_sql("LISTEN rota_due")
        listener.commit()

        answer = client.post("/admin/celery/tasks/sync", headers=operator)

        assert answer.json() == {"is_dispatching": False, "due": 1, "later": 0, "sent": 0, "running": 0}
        driver = listener.connection.driver_connection
        driver.poll()
        assert [notify.channel for notify in driver.notifies] == ["rota_due"]
        listener.exec_driver_sql("UNLISTEN *")


def test_a_sync_of_mail_says_that_its_plugin_is_missing(client, caller):
    answer = client.post("/admin/email-worker/sync", headers=caller("admin"))

    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-plugin")


def test_they_can_be_turned_off(operator):
    with serving(web_legacy=False) as client:
        assert client.get("/admin/workers", headers=operator).status_code == 404


def test_the_metrics_name_the_route_without_its_values_and_need_a_token(client, operator):
    client.get("/api/v1/runs/123456789", headers=operator)
    client.get("/nowhere/987654321")

    text = client.get("/metrics", headers=operator).text

    assert client.get("/metrics").status_code == 401
    assert 'rota_web_requests_seconds_count{code="404",route="/api/v1/runs/{run_id}"}' in text
    assert 'rota_web_requests_seconds_count{code="404",route="(none)"}' in text
    assert "123456789" not in text
    assert "987654321" not in text
    assert 'rota_web_refused_total{code="not-authenticated"}' in client.get("/metrics", headers=operator).text
