"""Callers of the HTTP service: tokens, sessions, requests from other sites, and the number of changes in a minute."""

import pytest
from pydantic import SecretStr

from core import job
from core.errors import RotaError, SettingsError
from core.ledger.audit import Actor
from core.observability.events import WebRefused
from core.operations import tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.settings import load
from core.web import server, service
from core.web.refusals import TooManyWrites
from core.web.writes import Writes
from tests.support.web import serving

ADMIN = Actor("ann", "cli")
SECRET = "x" * 32


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def link(database):
    with database.begin() as connection:
        return tokens.link(connection, ADMIN)


def make(database, name="grafana", **wanted):
    with database.begin() as connection:
        return tokens.create(connection, Wanted(name, **wanted), ADMIN).token


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def log_in(client, secret):
    answer = client.post(
        "/login", data={"secret": secret}, headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=False
    )
    assert answer.status_code == 303, answer.text
    return answer


def test_a_token_is_asked_for_everywhere_but_for_the_health(client):
    routes = [(method, path) for path, found in client.openapi()["paths"].items() for method in found]
    private = [(method, path) for method, path in routes if not path.startswith("/health")]
    assert len(private) > 3
    for method, path in private:
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert "rota tokens create" in answer.json()["next"]


def test_a_token_says_who_calls(client, database):
    secret = make(database, role="operator", queues=["default"])

    assert client.get("/api/v1/me", headers=bearer(secret)).json() == {
        "name": "grafana",
        "role": "operator",
        "plugins": None,
        "queues": ["default"],
        "sees_arguments": True,
    }


@pytest.mark.parametrize(
    "shown", ["Bearer ", "Bearer x", "Basic eDp4", "Bearer " + "x" * 5000, "Bearer rota_token_é", "x", ""]
)
def test_a_forged_token_is_refused_and_logged_without_it(client, shown, caplog):
    answer = client.get("/api/v1/me", headers={"Authorization": shown.encode()})

    assert answer.status_code == 401
    (event,) = [record.msg for record in caplog.records if isinstance(record.msg, WebRefused)]
    assert (event.code, event.address, event.path) == ("not-authenticated", "127.0.0.1", "/api/v1/me")
    assert not shown.strip() or shown not in caplog.text or len(shown) < 3


def test_the_token_of_the_settings_is_an_admins():
    with serving(web_token=SecretStr(SECRET)) as client:
        assert client.get("/api/v1/me", headers=bearer(SECRET)).json()["role"] == "admin"
        assert client.get("/api/v1/me", headers=bearer(SECRET + "x")).status_code == 401


def test_tokens_are_made_listed_and_revoked_by_admins_alone(client, database, ledger):
    admin, operator = make(database, "admin", role="admin"), make(database, "operator", role="operator")

    made = client.post("/api/v1/tokens", json={"name": "new", "role": "viewer"}, headers=bearer(admin))
    assert made.status_code == 201
    assert client.get("/api/v1/me", headers=bearer(made.json()["token"])).json()["name"] == "new"
    listed = client.get("/api/v1/tokens", headers=bearer(admin))
    assert [each["name"] for each in listed.json()] == ["admin", "operator", "new"]
    assert made.json()["token"][11:40] not in listed.text
    refused = client.post("/api/v1/tokens", json={"name": "x", "role": "admin"}, headers=bearer(operator))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert client.delete("/api/v1/tokens/new", headers=bearer(admin)).status_code == 204
    assert client.get("/api/v1/me", headers=bearer(made.json()["token"])).status_code == 401
    details = ledger.value("SELECT details FROM rota_audit WHERE action = 'tokens revoke'")
    assert set(details) == {"token", "request", "address"}


def test_a_link_logs_a_browser_in_once(client, link):
    page = client.get("/login", params={"link": link})
    assert page.status_code == 200
    assert link in page.text
    client.get("/login", params={"link": link})  # a preview of the link does not use the link

    answer = log_in(client, link)

    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("rota=rota_session_")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert client.get("/api/v1/me").json()["role"] == "admin"
    client.cookies.clear()
    again = client.post("/login", data={"secret": link}, headers={"Sec-Fetch-Site": "same-origin"})
    assert again.status_code == 401


def test_elsewhere_the_cookie_is_for_https_alone(client, link):
    answer = client.post(
        "https://rota.example/login",
        data={"secret": link},
        headers={"Sec-Fetch-Site": "same-origin"},
        follow_redirects=False,
    )

    assert answer.headers["Set-Cookie"].startswith("__Host-rota=")
    assert "Secure" in answer.headers["Set-Cookie"]
    assert "Path=/" in answer.headers["Set-Cookie"]


def test_logging_out_ends_the_session(client, link):
    session = log_in(client, link).cookies["rota"]
    client.post("/logout", headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=False)

    assert client.get("/api/v1/me", headers={"Cookie": f"rota={session}"}).status_code == 401


def test_the_login_page_escapes_what_it_is_given(client):
    page = client.get("/login", params={"link": '"><script>alert(1)</script>'})

    assert "<script>" not in page.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:9190"}, 403),
        ({"Origin": "http://127.0.0.1:9190"}, 201),
        ({"Origin": "http://127.0.0.1:9191"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_another_site_cannot_use_the_cookie_of_a_browser(client, link, headers, status):
    log_in(client, link)

    answer = client.post("/api/v1/tokens", json={"name": "new"}, headers=headers)

    assert answer.status_code == status
    assert status == 201 or answer.json()["code"] == "cross-origin"


@pytest.mark.parametrize("bad", ["http://[::1", "http://[", "//", "x"])
def test_an_origin_or_a_host_that_is_no_address_is_refused(client, link, bad):
    log_in(client, link)

    assert client.post("/api/v1/tokens", json={"name": "new"}, headers={"Origin": bad}).status_code == 403
    assert client.get("/api/v1/me", headers={"Host": bad}).status_code == 401


def test_a_token_needs_no_origin(client, database):
    assert (
        client.post("/api/v1/tokens", json={"name": "x"}, headers=bearer(make(database, role="admin"))).status_code
        == 201
    )


def test_more_changes_than_allowed_are_refused_for_a_time(database):
    clock = [0.0]
    writes = Writes(per_minute=2, monotonic=lambda: clock[0])
    for _ in range(2):
        writes.take("ann")
    with pytest.raises(TooManyWrites, match="at most 2 changes a minute"):
        writes.take("ann")
    writes.take("ben")
    clock[0] = 31.0
    writes.take("ann")
    with pytest.raises(TooManyWrites):
        writes.take("ann")


def test_the_answer_to_too_many_changes_says_when_to_try_again(client, database):
    headers = bearer(make(database))
    codes = [client.delete("/api/v1/tokens/x", headers=headers).status_code for _ in range(62)]

    assert (codes[0], codes[-1]) == (403, 429)
    assert client.get("/api/v1/me", headers=headers).status_code == 200
    assert client.delete("/api/v1/tokens/x", headers=headers).headers["Retry-After"] == "60"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.0.0.1.evil.example", "rota.example"])
def test_it_does_not_listen_for_others_while_nobody_can_log_in(database, host):
    configured = load().model_copy(update={"web_host": host})
    with service.opened(configured, loading.current()) as parts:
        with pytest.raises(RotaError, match="there is no token; make one with `rota tokens create"):
            server.refuse_open(configured, parts)
        server.refuse_open(configured.model_copy(update={"web_token": SecretStr(SECRET)}), parts)
        make(database)
        server.refuse_open(configured, parts)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_this_machine_alone_it_listens_without_a_token(database, host):
    configured = load().model_copy(update={"web_host": host})
    with service.opened(configured, loading.current()) as parts:
        server.refuse_open(configured, parts)


def test_the_token_of_the_settings_has_a_least_length(monkeypatch):
    monkeypatch.setenv("ROTA_WEB_TOKEN", "short")

    with pytest.raises(SettingsError, match="ROTA_WEB_TOKEN must have at least 32 characters") as refused:
        load()
    assert "short" not in str(refused.value).replace("short of", "")


@pytest.mark.parametrize(("settled", "asked"), [("", "/"), ("/ops", "/ops"), ("/ops", "/ops/"), ("/ops", "/")])
def test_the_address_itself_leads_a_browser_to_the_log_in(settled, asked):
    with serving(web_prefix=settled) as client:
        page = client.get(asked, headers={"Accept": "text/html"})

    assert (page.status_code, page.url.path) == (200, f"{settled}/login")
    assert f'action="{settled}/login"' in page.text
