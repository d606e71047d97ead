"""A trusted proxy: its headers say who calls and from where; the same headers of everybody else say nothing."""

import pytest

from core import job
from core.errors import SettingsError
from core.ledger.audit import Actor
from core.operations import tokens
from core.plugins import loading
from core.settings import load
from core.web import server, service
from tests.support.web import serving

PROXY, OTHER, CLIENT = "10.0.0.5", "10.0.1.5", "192.0.2.7"
SETTINGS = {
    "web_proxies": "10.0.0.5, fd00::/8",
    "web_user_header": "X-Forwarded-User",
    "web_groups_header": "X-Forwarded-Groups",
    "web_roles": "admins=admin; billing=operator plugin:billing; cn=ops,dc=x=operator; *=viewer",
}


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


def behind(address=PROXY, **changed):
    return serving(address=address, **{**SETTINGS, **changed})


def me(client, groups="", user="ann", **headers):
    return client.get("/api/v1/me", headers={"X-Forwarded-User": user, "X-Forwarded-Groups": groups, **headers})


@pytest.mark.parametrize(
    ("groups", "role", "plugins"),
    [
        ("admins", "admin", None),
        ("x, admins ,billing", "admin", None),
        ("billing,admins", "admin", None),  # the order of the setting counts
        ("billing", "operator", ["billing"]),
        ("", "viewer", None),
        ("Admins,admin,xadmins,admins2", "viewer", None),  # exactly
        ("cn=ops", "viewer", None),
        ("*", "viewer", None),
    ],
)
def test_the_groups_of_a_user_give_the_role(groups, role, plugins):
    with behind() as client:
        found = me(client, groups).json()

    assert (found["name"], found["role"], found["plugins"]) == ("ann", role, plugins)
    assert found["sees_arguments"] == (role != "viewer")


@pytest.mark.parametrize("address", [OTHER, "127.0.0.1", "::1", "fe80::1", "::ffff:10.0.0.6", "testclient"])
def test_forged_headers_of_others_are_not_read(address):
    with behind(address) as client:
        assert me(client, "admins").status_code == 401


@pytest.mark.parametrize("address", [PROXY, "::ffff:10.0.0.5", "fd00::1"])
def test_a_proxy_is_known_by_its_address(address):
    with behind(address) as client:
        assert me(client, "admins").json()["role"] == "admin"


def test_nothing_is_trusted_unless_it_is_configured():
    with serving(address=PROXY) as client:
        assert me(client, "admins").status_code == 401


def test_a_user_in_no_group_with_a_role_may_do_nothing():
    with behind(web_roles="admins=admin") as client:
        answer = me(client, "others")

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("user", ["", " ", "a\x85b", "x" * 201, "\u202eadmin"])
def test_a_name_that_is_none_is_refused(user):
    with behind() as client:
        assert me(client, "admins", user=user.encode()).status_code == 401


@pytest.mark.parametrize("doubled", [("x-forwarded-user", "root"), ("x-forwarded-groups", "billing")], ids=str)
def test_a_header_that_is_there_twice_names_nobody(doubled):
    with behind() as client:
        twice = [("X-Forwarded-User", "ann"), ("X-Forwarded-Groups", "admins"), doubled]
        assert client.get("/api/v1/me", headers=twice).status_code == 401


def test_a_token_counts_before_the_user_of_a_proxy(database):
    with database.begin() as connection:
        secret = tokens.create(connection, tokens.Wanted("grafana"), Actor("ann", "cli")).token
    with behind() as client:
        assert me(client, "admins", Authorization=f"Bearer {secret}").json()["role"] == "viewer"
        assert me(client, "admins", Authorization="Bearer x").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({}, 403),
        ({"Origin": "https://rota.example"}, 201),
        ({"Origin": "http://rota.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ],
)
def test_another_site_cannot_use_the_log_in_at_a_proxy(headers, status, ledger):
    forwarded = {"X-Forwarded-Host": "rota.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": CLIENT}
    given = {"X-Forwarded-User": "ann", "X-Forwarded-Groups": "admins", **forwarded, **headers}
    with behind() as client:
        answer = client.post("/api/v1/tokens", json={"name": "x"}, headers=given)

    assert answer.status_code == status
    if status == 201:
        actor, details = ledger.value("SELECT actor FROM rota_audit"), ledger.value("SELECT details FROM rota_audit")
        assert (actor, details["by"], details["address"]) == ("ann", "proxy", CLIENT)


@pytest.mark.parametrize(
    ("given", "client_address"),
    [
        (["192.0.2.7"], CLIENT),
        (["203.0.113.9, 192.0.2.7"], CLIENT),  # the first one is what the client claims
        (["203.0.113.9", "192.0.2.7"], CLIENT),
        (["192.0.2.7, fd00::2"], CLIENT),  # two trusted proxies
        (["192.0.2.7:4711"], CLIENT),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["192.0.2.7, unknown"], PROXY),
        (["<script>"], PROXY),
        ([""], PROXY),
        ([], PROXY),
    ],
)
def test_the_address_of_the_client_is_the_nearest_that_is_no_proxy(given, client_address, ledger):
    headers = [("X-Forwarded-User", "ann"), ("X-Forwarded-Groups", "admins"), ("Sec-Fetch-Site", "same-origin")]
    with behind() as client:
        found = client.post(
            "/api/v1/tokens", json={"name": "x"}, headers=headers + [("X-Forwarded-For", each) for each in given]
        )

    assert found.status_code == 201
    assert ledger.value("SELECT details->>'address' FROM rota_audit") == client_address


@pytest.mark.parametrize(
    ("address", "given", "setting", "prefix"),
    [
        (PROXY, "/rota", "", "/rota"),
        (PROXY, "/x, /rota/", "", "/rota"),
        (PROXY, "/rota", "/other", "/other"),
        (PROXY, "//evil.example", "", ""),
        (PROXY, '/a"><script>', "", ""),
        (OTHER, "/rota", "", ""),
    ],
)
@pytest.mark.parametrize("is_stripped", [True, False])
def test_the_prefix_of_a_trusted_proxy_is_the_beginning_of_every_address(address, given, setting, prefix, is_stripped):
    with behind(address, web_prefix=setting) as client:
        path = "/login" if is_stripped else f"{prefix}/login"
        page = client.get(path, headers={"X-Forwarded-Prefix": given})

    assert f'action="{prefix}/login"' in page.text


@pytest.mark.parametrize("host", ["evil.example/x", "a b", "evil.example@x", "-x", "x\tz", "[::1", "x:123456"])
def test_a_host_that_is_none_is_not_believed(host):
    given = {"X-Forwarded-User": "ann", "X-Forwarded-Groups": "admins", "X-Forwarded-Host": host}
    with behind() as client:
        headers = {**given, "Origin": f"http://{host}"}
        assert client.post("/api/v1/tokens", json={"name": "x"}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ROTA_WEB_PROXIES", "proxy.example", "has 'proxy.example'; expected addresses, networks or unix"),
        ("ROTA_WEB_PROXIES", "10.0.0.5/8", "has '10.0.0.5/8'"),  # which of the two is meant?
        ("ROTA_WEB_ROLES", "ops", "has 'ops'; expected GROUP=ROLE"),
        ("ROTA_WEB_ROLES", "ops=root", "expected GROUP=ROLE with the role viewer, operator, admin"),
        ("ROTA_WEB_ROLES", "=admin", "expected GROUP=ROLE"),
        ("ROTA_WEB_ROLES", "ops=operator job:x", "has the limit 'job:x'; expected plugin:NAME or queue:NAME"),
        ("ROTA_WEB_USER_HEADER", "X-Forwarded-User", "needs ROTA_WEB_PROXIES and ROTA_WEB_ROLES"),
        ("ROTA_WEB_USER_HEADER", "Cookie", "is not the name of a header"),
        ("ROTA_WEB_USER_HEADER", "X User", "is not the name of a header"),
        ("ROTA_WEB_URL", "http://rota.example", "must be an address that begins with https://"),
        ("ROTA_WEB_URL", "https://rota.example/", "must not end with a slash"),
        ("ROTA_OIDC_ISSUER", "https://id.example", "needs ROTA_OIDC_CLIENT_ID and ROTA_WEB_URL and ROTA_WEB_ROLES"),
        ("ROTA_OIDC_ISSUER", "http://id.example", "must be an address that begins with https://"),
        ("ROTA_OIDC_SCOPES", "email", "must have openid"),
    ],
)
def test_wrong_settings_are_refused_at_the_start(monkeypatch, name, value, problem):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refused:
        load()
    assert f"{name} {problem}" in str(refused.value) or problem in str(refused.value)


def test_a_service_whose_proxy_knows_people_may_listen_for_others(database):
    configured = load().model_copy(update={"web_host": "0.0.0.0", **SETTINGS})
    with service.opened(configured, loading.current()) as parts:
        server.refuse_open(configured, parts)
