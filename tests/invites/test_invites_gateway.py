"""The adapter for HTTP, with a real gateway in a process of its own: each fault has an outcome, and each a sentence."""

import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest

from plugins.invites.gateway import (
    Address,
    BadGateway,
    Done,
    Gateway,
    IncompleteListing,
    Limited,
    Member,
    NoSeats,
    NotSent,
    ReadFailed,
    Unknown,
    check_address,
    open_gateway,
)
from plugins.invites.gateway.connection import LONGEST_ANSWER
from plugins.invites.gateway.http import HttpGateway
from plugins.invites.gateway.simulated.faults import KINDS
from tests.support.certificates import self_signed
from tests.support.eventually import eventually
from tests.support.simulated_gateway import GatewayProcess, gateway_process

Connect = Callable[[Address], HttpGateway]
TOKEN = "sesame-token"
PAGE = 10
#: Only the tests of time-outs do not wait long, since a busy machine may answer late.
HANGING = {"read_seconds": 0.3}
IMPATIENT = {"hang_before": HANGING, "hang_after": HANGING, "slow": {"total_seconds": 0.5}}


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with gateway_process("--page", str(PAGE), token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """Return a function that returns the adapter for an address."""
    with ExitStack() as stack:

        def connected(address: Address) -> HttpGateway:
            gateway = HttpGateway(address)
            stack.callback(gateway.close)
            return gateway

        yield connected


@pytest.fixture(scope="module")
def gateway(process: GatewayProcess, connect: Connect) -> Gateway:
    return connect(process.address())


@pytest.fixture
def team(process: GatewayProcess) -> str:
    name = uuid.uuid4().hex
    process.team(name, 3)
    return name


def sent(process: GatewayProcess, team: str) -> dict[str, int]:
    return {email: times for (of, email), times in process.sent().items() if of == team}


def people(count: int) -> dict[str, str]:
    return {f"p{number:02}@example.org": "member" for number in range(count)}


class TestChanges:
    def test_a_person_is_invited_once_whatever_is_repeated(self, process, gateway, team):
        request_id = uuid.uuid4()

        outcomes = [gateway.invite(team, "ann@example.org", each) for each in (request_id, request_id, uuid.uuid4())]

        assert outcomes == [Done(201), Done(201), Done(409, already=True)]
        assert sent(process, team) == {"ann@example.org": 1}

    def test_a_full_team_is_told(self, gateway, team):
        outcomes = [gateway.invite(team, f"p{number}@example.org", uuid.uuid4()) for number in range(4)]

        assert outcomes[:3] == [Done(201)] * 3
        assert isinstance(outcomes[3], NoSeats)

    def test_removing_a_person_who_is_not_there_is_done_too(self, gateway, team):
        gateway.invite(team, "ann@example.org", uuid.uuid4())

        outcomes = [gateway.remove(team, "ann@example.org", uuid.uuid4()) for _ in range(2)]

        assert outcomes == [Done(204), Done(404, already=True)]

    def test_an_id_that_was_used_for_another_person_is_refused(self, gateway, team):
        request_id = uuid.uuid4()
        gateway.invite(team, "ann@example.org", request_id)

        found = gateway.invite(team, "ben@example.org", request_id)

        assert isinstance(found, NotSent)
        assert "has answered 422 (id_reused), which is about no person" in found.why

    @pytest.mark.parametrize("team", ["none", "../..", "..", "a/b", "a?b#c", "ü"])
    def test_an_unknown_team_is_a_fault_of_ours_and_refuses_nobody(self, gateway, team):
        found = gateway.invite(team, "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "(no_team): it does not know the team or the address" in found.why

    def test_a_wrong_token_is_a_fault_of_ours_and_refuses_nobody(self, process, team, connect):
        found = connect(process.address(token="wrong-token")).invite(team, "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "refuses the token; check ROTA_INVITES_GATEWAY_TOKEN" in found.why
        assert "wrong-token" not in found.why


class TestFaults:
    @pytest.mark.parametrize(
        ("kind", "was_done", "told"),
        [
            ("hang_before", False, "has sent nothing for 0.3 s"),
            ("hang_after", True, "has sent nothing for 0.3 s"),
            ("reset_before", False, "the connection to"),
            ("reset_after", True, "the connection to"),
            ("failed", False, "has answered 500 (failed)"),
            ("failed_after", True, "has answered 502 (bad_gateway)"),
            ("truncated", True, "has ended the connection before its answer was complete"),
            ("unreadable", True, "about another person, or unreadably"),
            ("huge", True, f"an answer of more than {LONGEST_ANSWER} bytes"),
            ("slow", True, "has not ended its answer within 0.5 s"),
        ],
    )
    def test_the_outcome_is_unknown_and_the_same_id_settles_it(
        self, process, gateway, team, kind, was_done, told, connect
    ):
        request_id = uuid.uuid4()
        process.fault(kind, on="invite")

        outcome = connect(process.address(**IMPATIENT.get(kind, {}))).invite(team, "ann@example.org", request_id)

        assert isinstance(outcome, Unknown)
        assert told in outcome.why
        assert "ann" not in outcome.why
        assert sent(process, team) == ({"ann@example.org": 1} if was_done else {})
        assert gateway.invite(team, "ann@example.org", request_id) == Done(201)
        assert sent(process, team) == {"ann@example.org": 1}

    @pytest.mark.parametrize(
        ("kind", "status", "is_certain"), [("limited", 429, True), ("limited_date", 429, True), ("busy", 503, False)]
    )
    def test_the_gateway_names_the_wait(self, process, gateway, team, kind, status, is_certain):
        process.fault(kind, on="invite", seconds=90)

        outcome = gateway.invite(team, "ann@example.org", uuid.uuid4())

        assert isinstance(outcome, Limited)
        assert (outcome.wait, outcome.status, outcome.is_certain) == (timedelta(seconds=90), status, is_certain)

    def test_forgotten_ids_invite_nobody_twice(self, process, gateway, team):
        request_id = uuid.uuid4()
        gateway.invite(team, "ann@example.org", request_id)
        process.fault("forget", on="invite")

        assert gateway.invite(team, "ann@example.org", request_id) == Done(409, already=True)
        assert sent(process, team) == {"ann@example.org": 1}

    def test_a_late_request_and_its_repetition_are_one(self, process, gateway, team, connect):
        request_id = uuid.uuid4()
        process.fault("late", on="invite", seconds=0.5)

        first = connect(process.address(**HANGING)).invite(team, "ann@example.org", request_id)
        second = gateway.invite(team, "ann@example.org", request_id)
        eventually(lambda: gateway.find(team, "ann@example.org"))

        assert (type(first), second) == (Unknown, Done(201))
        assert sent(process, team) == {"ann@example.org": 1}

    def test_an_unknown_fault_is_refused(self, process):
        with pytest.raises(Exception, match=r"disconnected|Server"):
            process.fault("nonsense")

    def test_each_kind_of_fault_is_described(self):
        assert all(text for text in KINDS.values())


class TestReads:
    def test_one_person_is_found(self, process, gateway, team):
        process.team(team, 3, {"ann@example.org": "member", "ben@example.org": "invited"})

        found = [gateway.find(team, f"{name}@example.org") for name in ("ann", "ben", "cat")]

        assert found == [Member("ann@example.org", True), Member("ben@example.org", False), None]

    @pytest.mark.parametrize("count", [0, 1, PAGE, PAGE + 1, 3 * PAGE])
    def test_a_listing_has_all_pages(self, process, gateway, team, count):
        process.team(team, 100, people(count))

        assert list(gateway.members(team)) == list(people(count))

    @pytest.mark.parametrize("fault", ["omit_page", "failed", "truncated", "unreadable", "huge", "reset_after"])
    def test_a_listing_with_a_fault_is_no_listing(self, process, gateway, team, fault):
        process.team(team, 100, people(3 * PAGE))
        process.fault("none", fault, on="list")

        with pytest.raises(ReadFailed) as failed:
            gateway.members(team)
        assert "p1" not in str(failed.value)
        assert isinstance(failed.value, IncompleteListing) == (fault in {"omit_page", "unreadable"})

    def test_a_team_that_changes_while_it_is_listed_is_not_listed(self, process, team, connect):
        process.team(team, 100, people(2 * PAGE))
        gateway = connect(process.address())
        pages = gateway._page

        def page(team: str, after: str | None):
            found = pages(team, after)
            process.team(team, 100, {"aaa@example.org": "member"})
            return found

        gateway._page = page
        with pytest.raises(IncompleteListing, match=r"has listed 20 members of a team of 20 and then 21$"):
            gateway.members(team)

    def test_a_limit_is_told_with_its_wait(self, process, gateway, team):
        process.fault("limited", on="find", seconds=7)

        with pytest.raises(ReadFailed) as failed:
            gateway.find(team, "ann@example.org")

        assert failed.value.wait == timedelta(seconds=7)


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("https://me:secret@teams.example.org", "must have no user, password or query"),
            ("https://teams.example.org/?token=secret", "must have no user, password or query"),
            ("http://teams.example.org", "would be sent unencrypted; use https://"),
            ("ftp://teams.example.org", "expected for example https://"),
            ("teams.example.org", "expected for example https://"),
            ("https://[", "is no URL"),
        ],
    )
    def test_an_address_that_cannot_be_used_is_told(self, url, told):
        with pytest.raises(BadGateway, match=told) as refused:
            check_address(url)
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize("url", ["https://teams.example.org/api", "http://127.0.0.1:8080", "http://localhost"])
    def test_other_addresses_can(self, url):
        check_address(url)

    def test_a_process_has_one_gateway_for_an_address(self):
        address = Address("https://teams.example.org")

        assert open_gateway(address) is open_gateway(replace(address))

    def test_a_token_is_not_shown(self):
        assert "secret" not in repr(Address("https://teams.example.org", "secret"))

    def test_a_gateway_that_is_away_is_told(self, connect):
        found = connect(Address("http://127.0.0.1:1")).invite("team", "ann@example.org", uuid.uuid4())

        assert found == NotSent("the gateway http://127.0.0.1:1 cannot be reached: Connection refused")

    def test_a_host_that_is_unknown_is_told(self, monkeypatch, connect):
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

        found = connect(Address("https://nowhere.invalid")).invite("team", "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "the host of the gateway https://nowhere.invalid cannot be found" in found.why

    def test_a_file_without_a_certificate_is_told(self, tmp_path):
        (tmp_path / "ca.pem").write_text("none")

        with pytest.raises(BadGateway, match=r"that cannot be read: it has no certificate$"):
            open_gateway(Address("https://localhost", ca_file=tmp_path / "ca.pem"))
        with pytest.raises(BadGateway, match=r"that cannot be read: No such file or directory$"):
            open_gateway(Address("https://localhost", ca_file=tmp_path / "none.pem"))


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory) -> Iterator[GatewayProcess]:
    """Yield a gateway whose certificate is for another host, and signed by nobody that this machine trusts."""
    file = tmp_path_factory.mktemp("tls") / "gateway.pem"
    file.write_bytes(b"".join(self_signed("other.example.org")))
    with gateway_process("--certificate", str(file)) as running:
        running.ca_file = file
        yield running


class TestCertificates:
    def test_a_certificate_that_nobody_signed_is_told(self, encrypted, connect):
        found = connect(encrypted.address()).invite("team", "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "is not valid: self-signed certificate; give the host's own name, or the file of its" in found.why

    def test_a_certificate_for_another_host_is_told(self, encrypted, connect):
        gateway = connect(encrypted.address(ca_file=encrypted.ca_file))

        found = gateway.invite("team", "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "IP address mismatch" in found.why

    def test_a_server_without_tls_is_told(self, process, connect):
        gateway = connect(replace(process.address(), url=process.url.replace("http:", "https:")))

        found = gateway.invite("team", "ann@example.org", uuid.uuid4())

        assert isinstance(found, NotSent)
        assert "does not speak TLS on this port" in found.why


def test_neither_addresses_nor_the_token_are_logged(process, gateway, team, caplog):
    with caplog.at_level("DEBUG"):
        gateway.invite(team, "ann@example.org", uuid.uuid4())
        gateway.find(team, "ann@example.org")

    assert "ann" not in caplog.text
    assert TOKEN not in caplog.text


def test_the_machines_authorities_are_trusted_by_default():
    assert Address("https://localhost").tls().verify_mode is ssl.CERT_REQUIRED
