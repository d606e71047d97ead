"""Teams are compared with the gateway: what is wrong here is corrected, and a wrong gateway costs nobody a seat."""

from datetime import timedelta

import pytest
from invites_office import Office
from invites_world import check, email
from sqlalchemy import text
from structlog.testing import capture_logs

from plugins.invites import gateway_jobs as jobs
from plugins.invites import remove_member

HALF_AN_HOUR = timedelta(minutes=30)
EIGHT_DAYS = timedelta(days=8)


@pytest.fixture
def club(office: Office) -> Office:
    """Return an office with twelve invited people, which are two pages of a listing."""
    office.team(seats=20)
    office.redeems(*(f"p{number:02}" for number in range(12)))
    office.sends()
    return office


def reconcile(office: Office, *, later: timedelta = HALF_AN_HOUR):
    run = office.runs(jobs.reconcile_invites, later=later)
    check(office.session)
    return run


def lost(office: Office) -> list[str]:
    return [name for name, states in office.world.states().items() if states[-1] in {"freed", "removing"}]


def test_unknown_invitations_are_sent_again_even_without_a_listing(office: Office):
    office.team()
    office.redeems("ann", "ben")
    ann, ben = office.world.open_requests()
    office.server.fault("reset_after", "reset_before", on="invite")
    office.sends()
    office.session.execute(text("DELETE FROM rota_runs"))
    office.session.commit()

    office.server.fault("failed", on="list")

    assert reconcile(office).state == "retrying"
    rows = office.session.execute(text("SELECT key, priority FROM rota_runs WHERE job = 'process-invite'"))
    assert {*rows.all()} == {(str(ann), 5), (str(ben), 5)}
    assert [run.result["already"] for run in office.sends()] == [True, False]
    assert office.world.states() == {"ann": ["invited"], "ben": ["invited"]}
    assert office.sent() == {"ann": 1, "ben": 1}


def test_an_unknown_removal_is_sent_again(office: Office):
    office.team()
    office.redeems("ann")
    office.sends()
    remove_member(office.session, "red", email("ann"))
    office.session.commit()
    office.server.fault("failed_after", on="remove")
    office.sends()

    assert reconcile(office).result == {"sent_again": 1}
    assert office.sends()[0].result == {"outcome": "confirmed", "already": True}
    assert office.world.states() == {"ann": ["freed"]}


def test_a_request_at_work_is_left_alone(office: Office):
    office.team()
    office.redeems("ann")
    office.server.fault("reset_after", on="invite")
    office.sends()

    assert reconcile(office, later=timedelta(minutes=1)).result == {}


def test_people_who_have_accepted_are_members(club: Office):
    club.server.control("accept", {"team": "red", "email": email("p03")})

    assert reconcile(club).result == {"joined": 1}
    assert club.world.states()["p03"] == ["member"]
    assert reconcile(club, later=EIGHT_DAYS).result == {"ended": 11}


def test_an_invitation_that_nobody_accepts_ends_after_seven_days(club: Office):
    assert reconcile(club, later=timedelta(days=6)).result == {}
    assert reconcile(club, later=EIGHT_DAYS).result == {"ended": 12}
    assert len(club.world.open_requests("remove")) == 12


def test_a_person_whom_the_gateway_does_not_have_loses_the_seat(club: Office):
    club.server.control("leave", {"team": "red", "email": email("p03")})

    assert reconcile(club, later=timedelta(minutes=5)).result == {}
    assert reconcile(club).result == {"lost": 1}
    assert lost(club) == ["p03"]


@pytest.mark.parametrize("fault", ["omit_page", "failed", "truncated", "unreadable", "reset_after"])
def test_a_listing_that_is_not_complete_changes_nothing(club: Office, fault):
    club.server.fault(fault, on="list")

    run = reconcile(club, later=EIGHT_DAYS)

    assert run.state == "retrying"
    assert "p0" not in run.error
    assert lost(club) == []
    assert club.world.open_requests() == []


def test_a_listing_that_hides_a_person_does_not_cost_the_seat(office: Office):
    """The listing leaves a person out and counts one less. The gateway is asked for each missing person again."""
    office.team()
    office.redeems("ann", "ben", "cat")
    office.sends()
    office.server.fault("hide_one", on="list")

    assert reconcile(office).result == {}
    assert lost(office) == []


def test_a_gateway_that_lacks_half_of_a_team_costs_nobody_the_seat(club: Office):
    for number in range(6):
        club.server.control("leave", {"team": "red", "email": email(f"p{number:02}")})

    with capture_logs() as lines:
        run = reconcile(club)

    assert run.result == {"missing": 6}
    assert lost(club) == []
    assert [line["event"] for line in lines] == ["members.missing"]
    assert "p0" not in str(lines)


def test_a_removal_that_was_refused_ends_when_the_person_has_gone(club: Office):
    remove_member(club.session, "red", email("p03"))
    club.session.execute(text("UPDATE invites_requests SET state = 'refused' WHERE kind = 'remove'"))
    club.session.commit()

    assert reconcile(club).result == {}
    club.server.control("leave", {"team": "red", "email": email("p03")})

    assert reconcile(club).result == {"lost": 1}
    assert club.world.states()["p03"] == ["freed"]


def test_a_limit_of_the_gateway_postpones_the_comparison(club: Office):
    club.server.fault("limited", on="list", seconds=100)

    run = reconcile(club)

    assert (run.state, run.reason) == ("retrying", "later")


def test_each_team_is_compared_by_a_run_of_its_own(club: Office):
    club.world.team("blue")

    run = club.run_job(jobs.reconcile_invites)

    assert run.result == {"teams": 2}
    assert club.world.runs("reconcile-invites") == ["", "1", "2"]
    assert club.runs(jobs.reconcile_invites, seat_id=999).result == {"skipped": "unknown seat"}


def test_without_a_gateway_nothing_is_compared(club: Office, monkeypatch, configure):
    monkeypatch.delenv("ROTA_INVITES_GATEWAY")
    configure()

    for each in (jobs.reconcile_invites, jobs.detect_orphan_users):
        assert club.run_job(each).result == {"skipped": "ROTA_INVITES_GATEWAY is not set"}
