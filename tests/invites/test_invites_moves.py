"""A move ends, whatever happens to its two seats: a limit, a refusal, a wrong team, the end of the person's time."""

from datetime import timedelta

import pytest
from invites_office import Office
from invites_world import NOON, check, email
from sqlalchemy import select, text

from plugins.invites import (
    MoveUnderWay,
    TeamClosed,
    TeamFull,
    cancel_move,
    move_member,
    remove_member,
)
from plugins.invites.expired import remove_expired
from plugins.invites.models import Seat
from plugins.invites.outcomes import begin


@pytest.fixture
def reserved(world):
    """Let Ann move from a seat whose invitation was not sent yet."""
    world.team("red", seats=1)
    world.redeems(world.code(days=1), "ann")
    world.team("blue", seats=1)
    move_member(world.session, email("ann"), "red", "blue", NOON)
    world.session.commit()
    yield world
    check(world.session)


@pytest.fixture
def moving(world):
    """Let Ann, a member of red, move to blue."""
    world.team("red", seats=1)
    world.redeems(world.code(days=1), "ann")
    world.sends(is_member=True)
    world.team("blue", seats=1)
    move_member(world.session, email("ann"), "red", "blue", NOON)
    world.session.commit()
    yield world
    check(world.session)


def test_a_move_from_a_seat_that_was_never_invited_ends_with_the_new_seat(reserved):
    _, of_blue = reserved.open_requests()

    assert reserved.sends_one(of_blue)

    assert (reserved.states(), reserved.moves()) == ({"ann": ["freed", "invited"]}, ["done"])
    assert reserved.taken() == {"red": 0, "blue": 1}
    assert reserved.open_requests() == []


def test_the_teams_of_a_move_are_locked_in_order(reserved, database):
    """The confirmation of the new seat frees the old one, so it locks the team of the old one too, before the seats."""
    _, of_blue = reserved.open_requests()
    held = text("SELECT id FROM invites_teams WHERE id NOT IN (SELECT id FROM invites_teams FOR UPDATE SKIP LOCKED)")
    begin(reserved.session, of_blue, NOON)

    with database.connect() as other:
        assert sorted(other.scalars(held)) == [1, 2]


def test_a_refused_removal_of_the_old_seat_is_requested_again(moving):
    moving.sends("invite")
    moving.refuses("remove")
    assert (moving.states(), moving.moves()) == ({"ann": ["removing", "invited"]}, ["removing"])

    assert remove_member(moving.session, "red", email("ann"), NOON)
    assert not remove_member(moving.session, "red", email("ann"), NOON)
    moving.session.commit()
    moving.sends("remove")

    assert (moving.states(), moving.moves()) == ({"ann": ["freed", "invited"]}, ["done"])


def test_a_move_is_cancelled_until_its_invitation_is_sent(moving):
    assert cancel_move(moving.session, email("ann"), "red", NOON)
    assert not cancel_move(moving.session, email("ann"), "red", NOON)
    moving.session.commit()

    assert (moving.states(), moving.moves()) == ({"ann": ["member", "freed"]}, ["failed"])
    assert (moving.taken(), moving.open_requests()) == ({"red": 1, "blue": 0}, [])


def test_a_move_whose_invitation_was_sent_is_not_cancelled(moving):
    begin(moving.session, moving.open_requests()[0], NOON)

    with pytest.raises(MoveUnderWay):
        cancel_move(moving.session, email("ann"), "red", NOON)


def test_a_move_to_a_team_that_the_gateway_does_not_know_is_cancelled(office: Office):
    office.team(seats=1)
    office.redeems("ann")
    office.sends()
    office.world.team("blue")
    move_member(office.session, email("ann"), "red", "blue")
    office.session.commit()

    (run,) = office.sends()
    assert "404 (no_team)" in run.error
    assert cancel_move(office.session, email("ann"), "red")
    office.session.commit()

    assert (office.world.states(), office.world.moves()) == ({"ann": ["invited", "freed"]}, ["failed"])
    check(office.session)


def test_time_that_is_up_ends_a_move_whose_invitation_was_not_sent(moving):
    end = NOON + timedelta(days=1)

    counts = remove_expired(moving.session, end, checkpoint=moving.checkpoint)

    assert (counts["removing"], counts["moving"]) == (1, 1)
    assert (moving.states(), moving.moves()) == ({"ann": ["removing", "freed"]}, ["failed"])
    assert len(moving.open_requests("remove")) == 1
    assert not moving.session.scalars(select(Seat.id).where(Seat.is_target)).all()


class TestOthers:
    """Ben waits for a seat of the pool of the new team, which has one that nobody was given yet."""

    @pytest.fixture
    def moves(self, world):
        world.team("red", seats=1)
        world.redeems(world.code(), "ann")
        world.team("vip", seats=0, pool="vips")
        world.redeems(world.code(pool="vips"), "ben")
        world.session.execute(text("UPDATE invites_teams SET seats = 1 WHERE name = 'vip'"))
        world.session.commit()
        return lambda to="vip": move_member(world.session, email("ann"), "red", to, NOON)

    def test_those_who_wait_are_first(self, moves):
        with pytest.raises(TeamFull, match="or others wait for it"):
            moves()

    def test_a_move_within_the_pool_takes_no_seat_from_those_who_wait(self, world, moves):
        world.redeems(world.code(), "cat")
        team = "INSERT INTO invites_teams (name, gateway_ref, pool, seats) VALUES ('blue', 'blue', 'club', 1)"
        world.session.execute(text(team))

        assert moves("blue")
        world.session.commit()
        assert world.waiting() == ["ben", "cat"]

    def test_a_team_that_is_closed_for_some_minutes_takes_nobody_in(self, world, moves):
        soon = {"soon": NOON + timedelta(minutes=5)}
        world.session.execute(text("DELETE FROM invites_redemptions"))
        world.session.execute(text("DELETE FROM invites_waiting WHERE pool = 'vips'"))
        world.session.execute(text("UPDATE invites_teams SET closed_until = :soon WHERE name = 'vip'"), soon)

        with pytest.raises(TeamClosed):
            moves()
        world.session.execute(text("UPDATE invites_teams SET closed_until = :soon"), {"soon": NOON})
        assert moves()
