"""The routes of the plugin: accounts over HTTP, without any secret."""

from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from core import schedules
from plugins.mail import add_account, encryption, list_accounts
from tests.support.web import serving

ACCOUNTS = "/api/v1/plugins/mail/accounts"
TOKEN = "x" * 32


@pytest.fixture
def client(session: Session, configure: Callable[..., None]) -> Iterator[TestClient]:
    configure(key=encryption.new_key())
    oauth = {"auth": "refresh_token", "token_url": "https://id.example.org/token", "client_id": "rota"}
    add_account(session, "ann", host="imap.example.org", username="ann", tls="implicit", secret="name-of-password")
    add_account(
        session, "ben", host="imap.example.org", username="ben", tls="implicit", refresh_token="1//ben", **oauth
    )
    session.execute(text("DELETE FROM rota_runs"))
    session.commit()
    with serving(web_token=SecretStr(TOKEN)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def test_accounts_are_shown_without_secrets(client):
    listed = client.get(ACCOUNTS)

    assert [each["name"] for each in listed.json()] == ["ann", "ben"]
    assert client.get(f"{ACCOUNTS}/ann").json() == listed.json()[0]
    assert (listed.json()[0]["state"], listed.json()[0]["poll_seconds"]) == ("active", 60)
    for secret in ("name-of-password", "1//ben", "id.example.org"):
        assert secret not in listed.text
    assert not {"secret", "token_url", "client_id", "refresh_token"} & set(listed.json()[0])


def test_an_account_is_paused_and_resumed(client, session):
    paused = client.post(f"{ACCOUNTS}/ann/pause", json={"reason": "moving"})
    assert (paused.status_code, paused.json()["state"], paused.json()["reason"]) == (200, "paused", "moving")
    assert [each.paused_at is not None for each in schedules(session, "poll-mailbox")] == [True, False]
    session.rollback()
    refused = client.post(f"{ACCOUNTS}/ann/poll")
    assert (refused.status_code, "resume it" in refused.json()["detail"]) == (409, True)

    assert client.post(f"{ACCOUNTS}/ann/resume").json()["state"] == "active"
    assert list_accounts(session)[0].reason is None


def test_an_account_is_polled_now_once(client, session):
    first, second = (client.post(f"{ACCOUNTS}/ann/poll").json() for _ in range(2))

    assert first == second
    job, key = session.execute(text("SELECT job, key FROM rota_runs WHERE id = :run"), first).one()
    assert (job, key) == ("poll-mailbox", str(client.get(f"{ACCOUNTS}/ann").json()["id"]))


@pytest.mark.parametrize("name", ["nobody", "%3Cscript%3E", "a%0Ab", "%E2%80%AE", "' OR 1=1"])
@pytest.mark.parametrize(
    ("method", "action"), [("GET", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/poll")]
)
def test_an_unknown_account_is_a_problem(client, name, method, action):
    answer = client.request(method, f"{ACCOUNTS}/{name}{action}")

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_a_wrong_body_is_refused(client):
    assert client.post(f"{ACCOUNTS}/ann/pause", json={"reason": 5}).status_code == 422
    assert client.post(f"{ACCOUNTS}/ann/pause", json={"secret": "x"}).status_code == 422
    assert client.get(f"{ACCOUNTS}/{'x' * 201}").status_code == 422
