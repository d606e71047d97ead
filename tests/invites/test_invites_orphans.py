"""Members whom no row explains are found in two complete listings, and removed only where that is switched on."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from invites_office import Office
from invites_world import email
from sqlalchemy import text
from structlog.testing import capture_logs

from plugins.invites import gateway_jobs as jobs
from plugins.invites import orphans
from plugins.invites.orphans import UnknownOrphan, keep_orphan, list_orphans, remove_orphan

SOON, LATER = timedelta(minutes=5), timedelta(hours=2)
#: Two pages of a listing.
STRANGERS = {f"x{number:02}": "member" for number in range(12)}


def detect(office: Office, later: timedelta = timedelta(0)):
    return office.runs(jobs.detect_orphan_users, later=later)


def there(office: Office) -> set[str]:
    """Return whom the gateway has."""
    return {name for name in [*STRANGERS, "ann", "zoe"] if office.server.find("red", email(name))}


def test_an_orphan_needs_two_sightings_half_an_hour_apart(office: Office):
    office.team(members={"zoe": "member"})
    office.redeems("ann")
    office.sends()

    found = [detect(office, later).result for later in (timedelta(0), SOON, LATER)]

    assert [each["suspected"] for each in found] == [1, 1, 0]
    assert [each["confirmed"] for each in found] == [0, 0, 1]
    assert office.orphans() == {"zoe": "confirmed"}
    assert there(office) == {"ann", "zoe"}


def test_a_gateway_that_omits_a_page_makes_nobody_an_orphan(office: Office):
    """The people have seats. Listings without a page count neither as a sighting nor as an absence."""
    office.team(seats=20, members={"zoe": "member"})
    office.redeems(*STRANGERS)
    office.sends()
    detect(office)

    for fault in ("omit_page", "truncated", "failed", "unreadable", "reset_after"):
        office.server.fault(fault, on="list")
        assert detect(office, LATER).state == "retrying"

    assert office.orphans() == {"zoe": "suspected"}
    assert detect(office, LATER).result == {"suspected": 0, "confirmed": 1}


def test_a_person_with_an_open_request_or_a_seat_freed_lately_is_no_orphan(office: Office):
    office.team()
    office.redeems("ann", "ben")
    office.server.fault("reset_after", on="invite")
    office.sends()
    office.session.execute(orphans.update(orphans.Seat).values(state="freed"))
    office.session.rollback()

    assert [detect(office, later).result["suspected"] for later in (timedelta(0), LATER)] == [0, 0]


def test_a_suspect_who_gets_a_seat_or_goes_is_forgotten(office: Office):
    office.team(members={"ann": "member", "zoe": "member"})
    detect(office)
    office.redeems("ann")
    office.server.control("leave", {"team": "red", "email": email("zoe")})

    detect(office, LATER)

    assert office.orphans() == {}


class TestRemovals:
    @pytest.fixture
    def switched_on(self, office: Office, configure: Callable[..., None]) -> Office:
        configure(remove_orphans="true")
        return office

    def test_never_many_at_once(self, switched_on: Office):
        switched_on.team(seats=100, members=STRANGERS)

        first = detect(switched_on)
        second = detect(switched_on, LATER)

        assert (first.result["suspected"], "removed" in first.result) == (12, False)
        assert second.result["removed"] == 5
        assert len(there(switched_on)) == 7
        assert sorted(switched_on.orphans().values()) == ["confirmed"] * 7 + ["removed"] * 5

    def test_a_person_with_a_seat_is_not_removed(self, switched_on: Office):
        switched_on.team(members={"zoe": "member", "ann": "member"})
        detect(switched_on)
        switched_on.redeems("ann")

        detect(switched_on, LATER)

        assert there(switched_on) == {"ann"}

    def test_a_removal_without_an_answer_is_repeated_with_the_same_id(self, switched_on: Office):
        switched_on.team(members={"zoe": "member"})
        detect(switched_on)
        switched_on.server.fault("reset_after", on="remove")

        first, second = detect(switched_on, LATER), detect(switched_on, LATER)

        assert (first.state, first.error.startswith("OutcomeUnknown: ")) == ("retrying", True)
        assert "removed" not in second.result  # the listing does not have the person any more
        assert switched_on.orphans() == {"zoe": "removed"}

    def test_a_removal_without_an_effect_is_tried_again(self, switched_on: Office):
        switched_on.team(members={"zoe": "member"})
        detect(switched_on)
        switched_on.server.fault("reset_before", on="remove")

        first, second = detect(switched_on, LATER), detect(switched_on, LATER)

        assert (first.state, first.error.startswith("OutcomeUnknown: ")) == ("retrying", True)
        assert second.result["removed"] == 1
        assert there(switched_on) == set()

    def test_a_limit_ends_the_removals_and_closes_the_team(self, switched_on: Office):
        switched_on.team(seats=100, members=STRANGERS)
        detect(switched_on)
        before = switched_on.now()
        switched_on.server.fault("limited", on="remove", seconds=600)

        run = detect(switched_on, LATER)

        assert (run.state, run.reason, len(there(switched_on))) == ("retrying", "later", 12)
        assert switched_on.closed_until() > before + timedelta(seconds=590)
        closings = switched_on.session.scalars(text("SELECT name FROM rota_closings"))
        assert closings.all() == ["invites:team:1"]

    def test_a_person_who_gets_a_seat_during_the_removal_is_invited_again(self, switched_on: Office, monkeypatch):
        switched_on.team(members={"ann": "member"})
        detect(switched_on)
        removed = orphans.request_id

        def given_meanwhile(orphan_id: int):
            switched_on.redeems("ann")
            switched_on.sends()
            return removed(orphan_id)

        monkeypatch.setattr(orphans, "request_id", given_meanwhile)
        detect(switched_on, LATER)
        assert switched_on.world.states() == {"ann": ["reserved"]}
        switched_on.sends()

        assert switched_on.world.states() == {"ann": ["invited"]}
        assert there(switched_on) == {"ann"}


class TestDecisions:
    @pytest.fixture
    def zoe(self, office: Office) -> int:
        office.team(members={"zoe": "member"})
        detect(office)
        (orphan,) = list_orphans(office.session)
        return orphan.id

    def test_a_person_keeps_one(self, office: Office, configure, zoe):
        configure(remove_orphans="true")
        assert [keep_orphan(office.session, zoe, "ops") for _ in range(2)] == [True, False]
        office.session.commit()

        detect(office, LATER)

        assert office.orphans() == {"zoe": "kept"}
        assert there(office) == {"zoe"}

    def test_a_person_removes_one(self, office: Office, zoe):
        remove_orphan(office.session, zoe, "ops")
        office.session.commit()
        assert office.world.runs("detect-orphan-users")[-1] == f"1/{zoe}"

        run = office.runs(jobs.detect_orphan_users, orphan_id=zoe)

        assert run.result == {"removed": 1}
        assert office.orphans() == {"zoe": "removed"}
        assert there(office) == set()
        with pytest.raises(UnknownOrphan, match=r"^unknown orphan 1; it may be removed already$"):
            keep_orphan(office.session, zoe, "ops")

    def test_a_decision_that_had_no_effect_is_carried_out_by_the_next_search(self, office: Office, zoe):
        remove_orphan(office.session, zoe, "ops")
        office.session.commit()
        office.server.fault("reset_before", on="remove")

        run = office.runs(jobs.detect_orphan_users, orphan_id=zoe)
        assert (run.state, run.error.startswith("OutcomeUnknown: ")) == ("retrying", True)

        assert detect(office, SOON).result["removed"] == 1
        assert there(office) == set()

    def test_a_decision_that_was_changed_is_kept(self, office: Office, zoe):
        remove_orphan(office.session, zoe, "ops")
        keep_orphan(office.session, zoe, "ops")
        office.session.commit()

        assert office.runs(jobs.detect_orphan_users, orphan_id=zoe).result == {"skipped": "decided otherwise"}
        assert there(office) == {"zoe"}


def test_orphans_are_logged_without_addresses(office: Office, configure):
    configure(remove_orphans="true")
    office.team(members={"zoe": "member"})
    with capture_logs() as lines:
        detect(office)
        detect(office, LATER)

    assert [line["event"] for line in lines] == ["orphans.found", "orphan.decided"]
    assert "zoe" not in str(lines)
