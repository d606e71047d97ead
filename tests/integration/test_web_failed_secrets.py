"""A limit for wrong tokens, links and sessions of each client address, which hinders no other caller."""

import pytest
from prometheus_client import REGISTRY

from core import job
from core.errors import NotAuthenticated
from core.ledger.audit import Actor
from core.operations import tokens
from core.web.failed_secrets import PER_MINUTE, FailedSecrets
from core.web.refusals import TooManyFailures
from tests.support.web import bearer, serving

PROXY, CLIENT, OTHER = "10.0.0.5", "192.0.2.7", "192.0.2.8"


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


def tries(client, count=PER_MINUTE, **headers):
    """Send wrong tokens, and return the statuses."""
    return [me(client, {"Authorization": f"Bearer {number}", **headers}).status_code for number in range(count)]


def me(client, headers):
    return client.get("/api/v1/me", headers=headers)


def refused():
    return REGISTRY.get_sample_value("rota_web_refused_total", {"code": "too-many-failures"}) or 0


def test_an_address_may_send_some_wrong_secrets_and_then_has_to_wait(client, database):
    link, before = tokens_link(database), refused()
    assert set(tries(client)) == {401}

    answer = me(client, bearer(database, "viewer"))  # although the token is right: this process does not know it yet
    logged_in = client.post("/login", data={"secret": link}, headers={"Sec-Fetch-Site": "same-origin"})

    assert (answer.status_code, answer.json()["code"]) == (429, "too-many-failures")
    assert 0 < int(answer.headers["Retry-After"]) <= 60 / PER_MINUTE
    assert "more than 10 wrong tokens" in answer.json()["detail"]
    assert logged_in.status_code == 429
    assert refused() == before + 2
    assert client.get("/health/live").status_code == 200
    assert client.get("/api/v1/me").status_code == 401  # without a secret there is nothing to guess


def test_a_token_that_was_right_before_is_still_right(client, database):
    shown = bearer(database, "viewer")
    assert me(client, shown).status_code == 200
    tries(client)
    assert me(client, shown).status_code == 200

    with database.begin() as connection:
        tokens.revoke(connection, "the-viewer", Actor("ann", "cli"))
    assert [me(client, shown).status_code for _ in range(2)] == [401, 429]


def test_wrong_log_ins_count(client):
    for _ in range(PER_MINUTE):
        client.post("/login", data={"secret": "x"}, headers={"Sec-Fetch-Site": "same-origin"})

    assert tries(client, 1) == [429]


def test_a_session_that_has_ended_counts_once(client):
    ended = {"Cookie": "rota=rota_session_x_00000000"}

    assert {me(client, ended).status_code for _ in range(3 * PER_MINUTE)} == {401}
    assert tries(client, PER_MINUTE) == [401] * (PER_MINUTE - 1) + [429]
    assert me(client, {"Cookie": "rota=other"}).status_code == 429


def test_behind_a_trusted_proxy_the_address_is_the_clients():
    with serving(address=PROXY, web_proxies=PROXY) as client:
        assert 429 in tries(client, PER_MINUTE + 1, **{"X-Forwarded-For": CLIENT})
        assert tries(client, 1, **{"X-Forwarded-For": OTHER}) == [401]
        assert tries(client, 1, **{"X-Forwarded-For": f"{OTHER}, {CLIENT}"}) == [429]  # the first is forged


def test_without_a_trusted_proxy_nobody_chooses_an_address():
    with serving(address=CLIENT) as client:
        statuses = [tries(client, 1, **{"X-Forwarded-For": f"10.0.0.{number}"})[0] for number in range(PER_MINUTE + 1)]

    assert statuses[-1] == 429


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (CLIENT, OTHER, False),
        (CLIENT, f"::ffff:{CLIENT}", True),
        (f"::ffff:{CLIENT}", f"::ffff:{OTHER}", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, None, True),
    ],
)
def test_addresses_of_one_customer_count_together(first, second, is_same):
    failed = FailedSecrets(per_minute=1)
    fail(failed, first)

    with pytest.raises(TooManyFailures if is_same else NotAuthenticated):
        fail_or_raise(failed, second)


def test_with_time_more_secrets_are_checked():
    clock = [0.0]
    failed = FailedSecrets(per_minute=2, monotonic=lambda: clock[0])
    for _ in range(2):
        fail(failed, CLIENT)
    with pytest.raises(TooManyFailures) as refused:
        fail_or_raise(failed, CLIENT)
    clock[0] += refused.value.seconds

    fail(failed, CLIENT)
    with pytest.raises(TooManyFailures):
        fail_or_raise(failed, CLIENT)


def fail(failed, address):
    with pytest.raises(NotAuthenticated):
        fail_or_raise(failed, address)


def fail_or_raise(failed, address):
    with failed.counted(address, "x"):
        raise NotAuthenticated


def tokens_link(database):
    with database.begin() as connection:
        return tokens.link(connection, Actor("ann", "cli"))
