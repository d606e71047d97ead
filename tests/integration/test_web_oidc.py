"""OpenID Connect: the code flow at a real provider, and every answer of a wrong one is refused in words."""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import ECKey, RSAKey
from pydantic import SecretStr

from core import job
from core.errors import NotAuthenticated, TokenError
from core.ledger.audit import Actor
from core.operations import tokens
from core.web import oidc
from core.web.oidc import Flow, Provider
from tests.support import oidc_provider
from tests.support.eventually import eventually
from tests.support.pages import BROWSER, read
from tests.support.web import serving

SECRET = "the-secret-of-the-client"
ROLES = "admins=admin; billing=operator plugin:billing"


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def provider():
    with oidc_provider.wrong() as provider:
        yield provider


def settings(issuer, **changed):
    found = {
        "oidc_issuer": issuer,
        "oidc_client_id": "rota",
        "oidc_client_secret": SecretStr(SECRET),
        "web_url": "http://127.0.0.1:9190",
        "web_roles": ROLES,
    }
    return {**found, **changed}


@pytest.fixture
def client(provider):
    with serving(**settings(provider.issuer)) as client:
        yield client


def begin(client):
    """The address of the provider to which a log-in leads."""
    answer = client.get("/login/oidc", follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return answer.headers["Location"]


def finish(client, query):
    return client.get(f"/login/oidc/back?{query}", follow_redirects=False)


def log_in(client, provider, **changed):
    return finish(client, provider.code(begin(client), **changed))


def test_a_person_logs_in_at_a_real_provider(ledger):
    ann = {"sub": "4711", "email": "ann@example.org", "email_verified": True, "groups": ["x", "billing"]}
    ben = {"sub": "ben", "email": "ann@example.org", "groups": ["others"]}
    with oidc_provider.real(ann, ben) as issuer, serving(**settings(issuer)) as client:
        assert "/login/oidc" in client.get("/login").text
        address = begin(client)
        asked = parse_qs(urlsplit(address).query)
        assert (asked["code_challenge_method"], asked["response_type"]) == (["S256"], ["code"])
        assert {"state", "nonce", "code_challenge"} <= set(asked)
        back = oidc_provider.consent(address, "4711")

        answer = client.get(back, follow_redirects=False)

        assert answer.status_code == 303, answer.text
        assert answer.headers["Location"] == "/"
        me = client.get("/api/v1/me").json()
        assert (me["name"], me["role"], me["plugins"]) == ("ann@example.org", "operator", ["billing"])
        (cookie,) = [each for each in answer.headers.get_list("Set-Cookie") if "rota_session_" in each]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert client.get(back, follow_redirects=False).status_code == 401  # neither the code nor the cookie again

        client.cookies.clear()
        answer = client.get(oidc_provider.consent(begin(client), "ben"), follow_redirects=False)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert client.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [("/runs?state=dead", "/runs?state=dead"), ("//evil.example", "/"), ("", "/"), ("/" + "é" * 1999, "/")],
)
def test_the_page_that_was_wanted_is_shown_after_a_log_in_at_the_provider(client, provider, wanted, shown):
    page = read(client.get("/login", params={"back": wanted}, headers=BROWSER))
    (link,) = [each for each in page.links if each.startswith("/login/oidc")]
    address = client.get(link, follow_redirects=False).headers["Location"]

    answer = finish(client, provider.code(address))

    assert answer.headers["Location"] == shown


def test_a_log_in_that_the_provider_refuses_does_not_forget_the_page_that_was_wanted(client):
    address = client.get("/login/oidc", params={"back": "/runs?state=dead"}, follow_redirects=False).headers["Location"]
    (state,) = parse_qs(urlsplit(address).query)["state"]

    answer = client.get(f"/login/oidc/back?error=access_denied&state={state}", headers=BROWSER)

    assert answer.status_code == 401
    assert read(answer).forms[0].fields["back"] == "/runs?state=dead"


def test_the_verifier_and_the_client_are_shown_to_the_provider(client, provider):
    address = begin(client)
    assert finish(client, provider.code(address)).status_code == 303

    (form,) = provider.forms
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    challenge = parse_qs(urlsplit(address).query)["code_challenge"][0]
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == challenge
    assert base64.b64decode(form["authorization"].removeprefix("Basic ")).decode() == f"rota:{SECRET}"
    assert form["redirect_uri"] == "http://127.0.0.1:9190/login/oidc/back"


def test_a_public_client_has_no_secret(provider):
    with serving(**settings(provider.issuer, oidc_client_secret=None)) as client:
        assert log_in(client, provider).status_code == 303

    assert provider.forms[0]["authorization"] == ""
    assert provider.forms[0]["client_id"] == "rota"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "http://localhost:1"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": ["rota", "other"]},  # without azp
        {"aud": ["rota", "other"], "azp": "other"},
        {"azp": "other"},
        {"nonce": "other"},
        {"nonce": None},
        {"exp": -120},
        {"exp": None},
        {"iat": 3600},
        {"nbf": 3600},
        {"sub": None},
        {"sub": 5},
    ],
    ids=str,
)
def test_a_token_with_wrong_claims_is_refused(client, provider, caplog, claims):
    provider.claims = claims
    answer = log_in(client, provider)

    assert (answer.status_code, answer.json()["code"]) == (401, "not-authenticated")
    assert "ID token" in answer.json()["detail"]
    assert client.get("/api/v1/me").status_code == 401
    assert oidc_provider.hidden(answer.text + caplog.text) == "[]"


@pytest.mark.parametrize(
    "header",
    [{"alg": "none"}, {"alg": "HS256"}, {"kid": "unknown"}],
    ids=str,
)
def test_a_token_that_is_not_signed_by_a_key_of_the_provider_is_refused(client, provider, header):
    provider.header = header

    assert log_in(client, provider).status_code == 401


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.é.é", "eyJhbGciOiJSUzI1NiJ9..", 5])
def test_a_token_that_is_none_is_refused(client, provider, token):
    provider.token = token or " "

    assert log_in(client, provider).status_code == 401


def test_a_token_with_a_forged_signature_is_refused(client, provider):
    query = provider.code(begin(client))
    head, _body, signature = provider.id_token().split(".")
    provider.claims = {"groups": ["admins"], "sub": "root"}
    provider.token = ".".join([head, provider.id_token().split(".")[1], signature])

    assert finish(client, query).status_code == 401


@pytest.mark.parametrize("claims", [{"exp": -30}, {"iat": 30}, {"azp": "rota"}])
def test_clocks_may_differ_by_a_minute(client, provider, claims):
    provider.claims = claims

    assert log_in(client, provider).status_code == 303


def test_a_new_key_of_the_provider_is_read_but_not_on_every_demand(provider):
    now = [0.0]
    found = Provider(configured(provider), monotonic=lambda: now[0])
    assert person(found, provider).name == "ann"
    provider.rotate("second")
    with pytest.raises(NotAuthenticated, match="no key of the provider has signed"):
        person(found, provider)
    assert provider.asked.count("/jwks") == 1
    now[0] = oidc.KEYS_LAST + 1

    assert person(found, provider).name == "ann"
    provider.key = provider.key.generate_key(2048, {"kid": "unpublished"})
    for _ in range(3):
        with pytest.raises(NotAuthenticated):
            person(found, provider)
    assert provider.asked.count("/jwks") == 2


def test_a_key_without_a_name_is_found_among_several(client, provider):
    provider.published = [provider.key.generate_key(2048, {"kid": "other"}), provider.key]
    provider.header = {"kid": None}
    provider.key = provider.key.import_key({k: v for k, v in provider.key.as_dict(private=True).items() if k != "kid"})
    provider.published[1] = provider.key

    assert log_in(client, provider).status_code == 303


def test_people_log_in_though_the_provider_has_keys_of_all_kinds(client, provider):
    encrypting, other = RSAKey.generate_key(2048, {"use": "enc"}), ECKey.generate_key("P-384")
    provider.others = [{"kty": "EC", "crv": "BP-256", "x": "AA", "y": "AA"}]
    provider.published = [encrypting, other, RSAKey.generate_key(2048)]
    provider.key = provider.published[-1]
    provider.header = {"kid": None}

    assert log_in(client, provider).status_code == 303


def configured(provider, **changed):
    from core.settings import load

    return load().model_copy(update=settings(provider.issuer, **changed))


def person(found, provider):
    flow = Flow("x")
    provider.nonce = flow.nonce
    return found.person(flow, "c")


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"email": "ann@example.org", "email_verified": True}, "ann@example.org"),
        ({"email": "ann@example.org", "email_verified": False}, "ann"),
        ({"email": "ann@example.org", "email_verified": "true"}, "ann"),
        ({"email": "ann@example.org"}, "ann"),
        ({"preferred_username": "root", "name": "root"}, "ann"),
    ],
)
def test_an_address_names_a_person_only_if_the_provider_has_verified_it(provider, claims, name):
    provider.claims = claims

    assert person(Provider(configured(provider)), provider).name == name


@pytest.mark.parametrize("groups", [["Admins"], ["adm"], "xadmins", ["*"], [["admins"]], {"admins": 1}, None, 5, []])
def test_groups_are_compared_exactly(client, provider, groups):
    provider.claims = {"groups": groups}

    assert log_in(client, provider).status_code == 403


def test_a_log_in_that_began_in_another_browser_is_refused(client, provider):
    query = provider.code(begin(client))
    client.cookies.clear()
    assert finish(client, query).status_code == 401
    begin(client)

    assert finish(client, query).status_code == 401
    assert provider.forms == []


@pytest.mark.parametrize(
    "changed",
    [
        {"state": ""},
        {"state": "é"},
        {"state": "x" * 5000},
        {"code": ""},
        {"error": "access_denied"},
        {"error": "<script>alert(1)</script>"},
        {"iss": "http://evil.example"},
    ],
    ids=str,
)
def test_a_wrong_answer_by_way_of_the_browser_is_refused(client, provider, changed):
    answer = log_in(client, provider, **changed)

    assert answer.status_code in {401, 422}
    assert "<script>" not in answer.text
    assert provider.forms == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "http://localhost:1"},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_a_provider_that_describes_itself_wrongly_is_not_used(client, provider, metadata):
    provider.metadata = metadata
    answer = client.get("/login/oidc", follow_redirects=False)

    assert (answer.status_code, answer.json()["code"]) == (503, "provider-away")


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 302}, {"seconds": 1.0}, {"is_gone": True}], ids=str)
def test_an_outage_of_the_provider_is_a_clear_answer_and_tokens_go_on(provider, database, monkeypatch, trouble):
    monkeypatch.setattr(oidc, "SECONDS", 0.3)
    with database.begin() as connection:
        token = tokens.create(connection, tokens.Wanted("grafana"), Actor("ann", "cli")).token
    issuer = "http://localhost:1" if trouble.pop("is_gone", False) else provider.issuer
    vars(provider).update(trouble)
    with serving(**settings(issuer)) as client:
        answer = client.get("/login/oidc", follow_redirects=False)
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200

    assert (answer.status_code, answer.json()["code"]) == (503, "provider-away")
    assert answer.headers["Retry-After"]
    assert SECRET not in answer.text


def test_many_log_ins_wait_for_the_provider_and_others_may_begin(provider, monkeypatch):
    monkeypatch.setattr(oidc, "SECONDS", 30.0)
    found = Provider(configured(provider))
    provider.gives.clear()
    most = oidc.MOST_AT_ONCE + oidc.MOST_WAITING
    with ThreadPoolExecutor(most + 1) as threads:
        try:
            ends = [threads.submit(person, found, provider) for _ in range(most + 1)]
            refused = eventually(lambda: [each for each in ends if each.done()], within=20)
            assert found.address(Flow("x")).startswith(provider.issuer)
        finally:
            provider.gives.set()

    assert [str(each.exception()) for each in refused] == ["12 requests wait for the provider"]
    assert [each.result().name for each in ends if each not in refused] == ["ann"] * most


def test_the_sessions_of_a_person_are_ended_by_the_name(client, provider, database, ledger):
    assert log_in(client, provider).status_code == 303
    assert client.get("/api/v1/me").json()["role"] == "admin"
    assert ledger.value("SELECT expires_at < clock_timestamp() + interval '13 hours' FROM rota_credentials")

    with database.begin() as connection:
        tokens.revoke(connection, "ann", Actor("ben", "cli"))

    assert client.get("/api/v1/me").status_code == 401
    with database.begin() as connection, pytest.raises(TokenError, match="no token and no session named 'ann'"):
        tokens.revoke(connection, "ann", Actor("ben", "cli"))


def test_no_secret_reaches_the_log(client, provider, caplog):
    query = provider.code(begin(client), code="the-code")
    finish(client, query)
    provider.claims = {"aud": "other"}
    log_in(client, provider, code="the-code")

    cookies = [cookie.value for cookie in client.cookies.jar]
    for secret in (SECRET, "the-code", *cookies, *query.split("&")):
        assert secret not in caplog.text
    assert SECRET not in repr(replace(Flow("x")))


def test_without_a_provider_there_is_no_such_log_in(database):
    with serving() as client:
        assert client.get("/login/oidc").status_code == 404
        assert client.get("/login/oidc/back?code=x&state=x").status_code == 404
        assert "/login/oidc" not in client.get("/login").text
