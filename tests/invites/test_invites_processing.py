"""Each request has its effect once, whatever the gateway does. It ends in a known state, or is sent again."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from invites_office import Office
from invites_world import check, email
from sqlalchemy import text

from plugins.invites import invite_many, remove_member
from plugins.invites.gateway.http import HttpGateway
from plugins.invites.gateway_jobs import limited_jobs
from plugins.invites.outcomes import begin
from plugins.invites.settings import InvitesSettings
from tests.support.certificates import self_signed
from tests.support.simulated_gateway import gateway_process

AN_HOUR = timedelta(hours=1)


def test_a_person_is_invited_and_a_repeated_run_does_nothing(office: Office):
    office.team()
    office.redeems("ann")
    (request_id,) = office.world.open_requests()

    runs = [office.send(request_id) for _ in range(2)]

    assert [run.result["outcome"] for run in runs] == ["confirmed", "known"]
    assert office.world.states() == {"ann": ["invited"]}
    assert office.sent() == {"ann": 1}


def test_an_unknown_request_id_is_nobodys_work(office: Office):
    office.team()

    assert office.send(uuid.uuid4()).result == {"outcome": "known"}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("reset_before", "the connection to"),
        ("reset_after", "the connection to"),
        ("failed", "has answered 500 (failed)"),
        ("failed_after", "has answered 502 (bad_gateway)"),
        ("truncated", "before its answer was complete"),
        ("unreadable", "about another person, or unreadably"),
    ],
)
def test_an_unknown_outcome_is_a_state_and_the_next_attempt_settles_it(office: Office, kind, told):
    office.team()
    office.redeems("ann")
    office.server.fault(kind, on="invite")

    (failed,) = office.sends()
    ((_, state, problem),) = office.requests()
    assert (failed.state, failed.reason, state) == ("retrying", "error", "unknown")
    assert failed.error.startswith("OutcomeUnknown: the ")
    assert told in problem

    assert [run.result["outcome"] for run in office.sends()] == ["confirmed"]
    assert office.requests() == [("invite", "confirmed", None)]
    assert office.sent() == {"ann": 1}


def test_a_hanging_gateway_is_left_and_the_next_attempt_finds_the_member(office: Office, configure):
    configure(gateway_read_seconds="0.3")
    office.team()
    office.redeems("ann")
    office.server.fault("hang_after", on="invite", seconds=1)
    office.sends()
    configure(gateway_read_seconds="30")

    (run,) = office.sends()

    assert run.result == {"outcome": "confirmed", "already": True}
    assert office.sent() == {"ann": 1}


def test_a_worker_that_died_after_the_request_invites_nobody_twice(office: Office):
    """The gateway has also forgotten the id."""
    office.team()
    office.redeems("ann")
    (request_id,) = office.world.open_requests()
    office.send(request_id)
    office.session.execute(text("UPDATE invites_requests SET state = 'sent'"))
    office.session.execute(text("UPDATE invites_seats SET state = 'inviting'"))
    office.session.commit()
    office.server.fault("forget", on="find")

    assert office.send(request_id).result == {"outcome": "confirmed", "already": True}
    assert office.world.states() == {"ann": ["invited"]}
    assert office.sent() == {"ann": 1}


def test_a_gateway_that_cannot_say_who_is_there_is_not_sent_the_request_again(office: Office):
    office.team()
    office.redeems("ann")
    office.server.fault("reset_after", on="invite")
    office.sends()
    office.server.fault("failed", on="find")
    office.server.fault("none", on="invite")

    (run,) = office.sends()

    assert run.state == "retrying"
    assert office.requests()[0][1] == "unknown"


@pytest.mark.parametrize(("kind", "state"), [("limited", "new"), ("limited_date", "new"), ("busy", "unknown")])
def test_a_limit_postpones_the_run_and_closes_the_team(office: Office, kind, state):
    office.team()
    office.redeems("ann")
    before = office.now()
    office.server.fault(kind, on="invite", seconds=600)

    (run,) = office.sends()

    assert (run.state, run.reason, run.failures, run.laters) == ("retrying", "later", 0, 1)
    assert run.due_at > before + timedelta(seconds=590)
    assert office.requests()[0][1] == state
    assert office.closed_until() > before + timedelta(seconds=590)
    closings = office.session.execute(text("SELECT name, until FROM rota_closings"))
    ((name, until),) = closings.all()
    assert name == "invites:team:1"
    assert until > before + timedelta(seconds=590)


def test_a_shorter_limit_does_not_open_a_team_earlier(office: Office):
    office.team()
    office.redeems("ann", "ben")
    before = office.now()
    office.server.fault("limited", "limited", on="invite")
    office.server.fault("none")
    office.session.execute(text("UPDATE invites_teams SET closed_until = now() + interval '1 hour'"))
    office.session.commit()

    office.send(office.world.open_requests()[0])

    assert office.closed_until() > before + timedelta(minutes=59)


def test_a_refused_person_loses_the_seat_to_the_next(office: Office):
    team_id = office.team(seats=1)
    office.redeems("ann", "ben")
    office.session.execute(text("UPDATE invites_seats SET email = 'no-address'"))
    office.session.commit()

    (run,) = office.sends()

    assert run.result["outcome"] == "refused"
    assert run.result["reason"].endswith("has answered 422 (bad_email)")
    assert office.requests()[0][1] == "refused"
    assert office.world.states() == {"no-address": ["freed"]}
    assert office.world.runs("consume-waiting-queue") == ["club"]
    assert team_id == 1
    check(office.session)


def test_a_team_that_is_full_at_the_gateway_gives_the_seat_back(office: Office):
    office.team(seats=1, members={"zoe": "member"})
    office.redeems("ann", "ben")

    (run,) = office.sends()

    assert run.result == {"outcome": "no seats"}
    assert office.world.waiting() == ["ann", "ben"]
    assert office.world.runs("reconcile-invites") == ["1"]
    assert office.closed_until() is not None
    check(office.session)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gateway_token": "wrong"}, "refuses the token; check ROTA_INVITES_GATEWAY_TOKEN"),
        ({"gateway": "http://127.0.0.1:1"}, "cannot be reached: Connection refused"),
    ],
)
def test_a_wrong_setting_costs_nobody_the_seat(office: Office, configure, settings, told):
    office.team()
    office.redeems("ann")
    configure(**settings)

    (run,) = office.sends()

    assert (run.state, run.error.startswith("RequestNotSent: the gateway")) == ("retrying", True)
    assert told in run.error
    assert office.requests()[0][1] == "new"
    configure(gateway=office.server.url, gateway_token="sesame-token")
    assert [each.result["outcome"] for each in office.sends()] == ["confirmed"]


def test_a_gateway_with_a_wrong_certificate_costs_nobody_the_seat(office: Office, configure, tmp_path):
    office.team()
    office.redeems("ann")
    file = tmp_path / "gateway.pem"
    file.write_bytes(b"".join(self_signed("other.example.org")))
    with gateway_process("--certificate", str(file)) as encrypted:
        configure(gateway=encrypted.url)

        (run,) = office.sends()

    assert run.error.startswith("RequestNotSent: the certificate of the gateway https://127.0.0.1:")
    assert "is not valid: self-signed certificate; give the host's own name" in run.error
    assert office.requests()[0][1] == "new"
    assert office.world.states() == {"ann": ["inviting"]}
    configure(gateway=office.server.url)
    assert [each.result["outcome"] for each in office.sends()] == ["confirmed"]


def test_what_may_have_happened_stays_unknown_when_a_later_attempt_is_not_sent(office: Office, configure):
    office.team()
    office.redeems("ann")
    office.server.fault("reset_after", on="invite")
    office.sends()
    configure(gateway="http://127.0.0.1:1")

    office.sends()

    assert office.requests()[0][1] == "unknown"


def test_a_missing_setting_is_told_before_anything_changes(office: Office, monkeypatch, configure):
    office.team()
    office.redeems("ann")
    monkeypatch.delenv("ROTA_INVITES_GATEWAY")
    configure()

    (run,) = office.sends()

    assert "ROTA_INVITES_GATEWAY is not set; give the address of the gateway" in run.error
    assert office.requests() == [("invite", "new", None)]


class TestRemovals:
    @pytest.fixture
    def ann(self, office: Office) -> str:
        """Let Ann be invited and then be removed."""
        office.team(seats=1)
        office.redeems("ann", "ben")
        office.sends()
        remove_member(office.session, "red", email("ann"))
        office.session.commit()
        return email("ann")

    def test_a_seat_is_given_on_only_when_its_removal_is_confirmed(self, office: Office, ann):
        office.server.fault("failed_after", on="remove")

        office.sends()
        assert (office.world.states(), office.world.taken()) == ({"ann": ["removing"]}, {"red": 1})
        assert office.world.runs("consume-waiting-queue") == []

        assert [run.result for run in office.sends()] == [{"outcome": "confirmed", "already": True}]
        assert (office.world.states(), office.world.taken()) == ({"ann": ["freed"]}, {"red": 0})
        assert office.world.runs("consume-waiting-queue") == ["club"]

    def test_a_removal_that_had_no_effect_is_sent_again(self, office: Office, ann):
        office.server.fault("reset_before", on="remove")
        office.sends()

        (run,) = office.sends()

        assert run.result == {"outcome": "confirmed", "already": False}

    def test_a_person_who_is_gone_already_is_removed(self, office: Office, ann):
        office.server.control("reset")
        office.server.team("red", 1)

        (run,) = office.sends()

        assert run.result == {"outcome": "confirmed", "already": True}


def test_a_removal_waits_for_the_outcome_of_the_invitation(office: Office):
    office.team()
    office.redeems("ann")
    office.server.fault("reset_after", on="invite")
    office.sends()
    remove_member(office.session, "red", email("ann"))
    office.session.commit()

    assert [kind for kind, _, _ in office.requests()] == ["invite"]
    office.sends()
    office.sends()

    assert [(kind, state) for kind, state, _ in office.requests()] == [("invite", "confirmed"), ("remove", "confirmed")]
    assert office.world.states() == {"ann": ["freed"]}


class TestRemovedMeanwhile:
    """Ann is removed while her invitation is in flight, and the answer tells that it had no effect."""

    @pytest.fixture
    def ann(self, office: Office, monkeypatch) -> Any:
        office.team(seats=1)
        office.redeems("ann")
        (request_id,) = office.world.open_requests()
        asked = HttpGateway.invite

        def removed_meanwhile(*args: Any) -> Any:
            remove_member(office.session, "red", email("ann"))
            office.session.commit()
            return asked(*args)

        monkeypatch.setattr(HttpGateway, "invite", removed_meanwhile)
        yield request_id
        office.session.execute(text("DELETE FROM rota_closings"))
        office.session.commit()
        assert office.send(request_id).result == {"outcome": "known"}
        assert office.requests() == [("invite", "refused", "the person was removed before it was sent")]
        assert (office.world.states(), office.world.taken()) == ({"ann": ["freed"]}, {"red": 0})
        assert office.world.runs("consume-waiting-queue") == ["club"]
        check(office.session)

    def test_a_limit_does_not_have_the_person_invited(self, office: Office, ann):
        office.server.fault("limited", on="invite")

        assert office.send(ann).reason == "later"

    def test_a_refused_token_does_not_have_the_person_invited(self, office: Office, configure, ann):
        configure(gateway_token="wrong")

        assert office.send(ann).state == "retrying"

    def test_a_missing_connection_does_not_have_the_person_invited(self, office: Office, configure, ann):
        configure(gateway="http://127.0.0.1:1")

        assert office.send(ann).state == "retrying"


def test_an_invitation_that_was_put_back_is_not_sent_after_the_removal(office: Office):
    office.team(seats=1)
    office.redeems("ann")
    office.session.execute(text("UPDATE invites_seats SET state = 'removing'"))
    office.session.commit()

    assert [run.result for run in office.sends()] == [{"outcome": "known"}]
    assert office.world.states() == {"ann": ["freed"]}
    assert office.sent() == {}


def test_no_address_and_no_token_is_in_a_run_or_a_log(office: Office, caplog):
    office.team(seats=1, members={"zoe": "member"})
    office.redeems("ann")
    office.server.fault("failed", "reset_before", "none", on="invite")

    with caplog.at_level("DEBUG"):
        for _ in range(3):
            office.sends()

    dumped = "".join(office.session.scalars(text("SELECT CAST(rota_runs AS text) FROM rota_runs")))
    dumped += "".join(office.session.scalars(text("SELECT coalesce(error, '') FROM rota_attempts")))
    for each in ("ann@", "sesame-token"):
        assert each not in dumped + caplog.text


def test_no_transaction_is_open_while_the_gateway_is_asked(office: Office, database, configure):
    """The gateway answers slowly, and the idle transactions are counted meanwhile."""
    office.team()
    office.redeems("ann")
    (request_id,) = office.world.open_requests()
    office.session.rollback()
    seen: list[int] = []
    idle = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'")

    class Looking:
        def invite(self, *args: object):
            with database.connect() as connection:
                seen.append(connection.scalar(idle))
            return gateway.invite(*args)

    from plugins.invites import gateway_jobs
    from plugins.invites.gateway.current import current_gateway

    gateway = current_gateway()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway_jobs, "current_gateway", Looking)
        office.send(request_id)

    assert seen == [0]
    assert begin(office.session, request_id, office.now()) is None


def test_the_limits_are_those_of_the_settings_and_each_team_has_its_own(office: Office, configure):
    configure(gateway_requests="7", team_requests="3")

    found = limited_jobs(InvitesSettings.current())

    assert [[str(limit) for limit in job.limits] for job in found] == [
        ["invites:gateway: 7 at once", "invites:team:{team_id}: 3 at once"]
    ] * 3
    assert found[0].limit_names({"request_id": "1", "team_id": 5}) == ["invites:gateway", "invites:team:5"]


def test_people_who_ask_themselves_go_before_lists(office: Office):
    office.team(seats=3)
    invite_many(office.session, [email("list")], "club")
    office.session.commit()
    office.redeems("ann")

    rows = office.session.execute(text("SELECT priority FROM rota_runs WHERE job = 'process-invite' ORDER BY id"))
    of_list, of_ann = rows.scalars()

    assert of_ann > of_list
