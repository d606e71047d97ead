"""Browsers that are logged in: an admin sees them, and ends their sessions, over HTTP and on the command line."""

import json

import pytest
from click.testing import CliRunner

from core import job
from core.cli import main
from core.ledger.tokens import Rights
from core.operations import tokens
from tests.support.web import bearer


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def session(database):
    """Begins a session of a person, and returns the header of the browser's cookie."""

    def begin(name, role="operator", plugins=None):
        with database.begin() as connection:
            secret = tokens.begin_session(connection, name, Rights(role, plugins), by="oidc")
        return {"Cookie": f"rota={secret}"}

    return begin


@pytest.fixture
def rota(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["sessions", *words], catch_exceptions=False)


def listed(client, headers, **params):
    return client.get("/api/v1/sessions", headers=headers, params=params).json()


def test_sessions_are_listed_newest_first_and_ended_by_admins(client, database, ledger, session):
    ann, ben, root = session("ann", plugins=["billing"]), session("ben"), session("root", "admin")
    assert client.get("/api/v1/me", headers=ann).status_code == 200

    found = listed(client, root)

    assert [(each["name"], each["role"], each["is_own"]) for each in found] == [
        ("root", "admin", True),
        ("ben", "operator", False),
        ("ann", "operator", False),
    ]
    assert (found[2]["plugins"], found[2]["created_by"], found[1]["used_at"]) == (["billing"], "oidc", None)
    assert found[2]["used_at"] is not None
    assert ann["Cookie"][20:50] not in json.dumps(found)
    assert [each["name"] for each in listed(client, root, limit=1)] == ["root"]
    assert [each["name"] for each in listed(client, root, limit=1, before=found[0]["id"])] == ["ben"]

    same_site = {"Sec-Fetch-Site": "same-origin"}
    ended = client.delete(f"/api/v1/sessions/{found[2]['id']}", headers={**root, **same_site})
    assert ended.status_code == 204
    assert client.get("/api/v1/me", headers=ann).status_code == 401
    assert client.get("/api/v1/me", headers=ben).status_code == 200
    again = client.delete(f"/api/v1/sessions/{found[2]['id']}", headers={**root, **same_site})
    assert (again.status_code, "there is no session" in again.json()["detail"]) == (404, True)
    (entry,) = ledger.rows("SELECT actor, target, details FROM rota_audit WHERE action = 'sessions end'")
    assert (entry.actor, entry.target) == ("root", "ann")
    assert (entry.details["ended"], entry.details["session"]) == (found[2]["id"], found[0]["id"])


def test_a_token_is_no_session(client, database):
    admin = bearer(database, "admin")
    with database.connect() as connection:
        token = connection.exec_driver_sql("SELECT id FROM rota_credentials").scalar_one()

    assert listed(client, admin) == []
    assert client.delete(f"/api/v1/sessions/{token}", headers=admin).status_code == 404
    assert client.get("/api/v1/me", headers=admin).status_code == 200


def test_a_session_that_has_expired_is_not_listed(client, database, ledger, session):
    session("ann")
    ledger.do("UPDATE rota_credentials SET expires_at = now() - interval '1 second'")

    assert listed(client, bearer(database, "admin")) == []


def test_the_command_lists_and_ends_sessions(rota, client, ledger, session):
    ann, ben = session("ann"), session("ben")
    found = json.loads(rota("--json").stdout)
    ids = [str(each["id"]) for each in found]
    assert [each["name"] for each in found] == ["ben", "ann"]
    assert "ben" in rota().stdout

    wrong = rota("end", ids[0], "4711")
    assert (wrong.exit_code, wrong.stderr) == (1, "rota: there is no session 4711: it is mistyped, or has ended\n")
    assert client.get("/api/v1/me", headers=ben).status_code == 200  # none was ended
    assert rota("end", *ids, ids[0], "--by", "eve").stdout == f"ended {ids[0]}, {ids[1]}\n"

    assert {client.get("/api/v1/me", headers=each).status_code for each in (ann, ben)} == {401}
    assert rota().stdout == "no browser is logged in\n"
    assert {each.actor for each in ledger.rows("SELECT actor FROM rota_audit WHERE action = 'sessions end'")} == {"eve"}
