"""Seats are given in order, held until the gateway has confirmed a removal, and never given twice."""

from datetime import timedelta

import pytest
from invites_world import NOON, check, email
from sqlalchemy import select

from plugins.invites import (
    CodeRefused,
    MoveUnderWay,
    SeatsTaken,
    TeamTaken,
    UnknownMember,
    UnknownTeam,
    add_team,
    close_team,
    extend,
    leave_waiting,
    move_member,
    open_team,
    redeem,
    remove_member,
    set_seats,
)
from plugins.invites.consuming import consume
from plugins.invites.errors import BadValue
from plugins.invites.expired import remove_expired
from plugins.invites.models import Code, Redemption, Request, Seat, Team
from plugins.invites.outcomes import begin, confirm, leave_unknown, lose, member_joined, no_room
from plugins.invites.overview import unknown_requests


@pytest.fixture(autouse=True)
def _checked(world):
    yield
    check(world.session)


def test_the_first_get_seats_and_the_others_wait_in_order(world):
    world.team(seats=2)
    code = world.code()

    assert world.redeems(code, "ann", "bob", "cid", "dan") == ["seat", "seat", "waiting", "waiting"]

    assert world.waiting() == ["cid", "dan"]
    assert redeem(world.session, code, email("dan"), NOON).ahead == 1
    assert world.runs("process-invite") == [str(each) for each in world.open_requests()]


def test_the_same_person_and_code_have_the_first_answer(world):
    world.team(seats=1)
    code = world.code(uses=2)
    world.redeems(code, "ann", "bob")

    assert redeem(world.session, code, " ANN@Example.org ", NOON).state == "seat"
    assert redeem(world.session, code, email("bob"), NOON).state == "waiting"
    assert world.session.scalar(select(Code.used)) == 2
    assert len(world.states()) == 1


def test_a_person_with_a_seat_does_not_use_another_code(world):
    world.team(seats=5)
    world.redeems(world.code(), "ann")
    other = world.code(uses=1)

    answered = redeem(world.session, other, email("ann"), NOON)

    assert (answered.state, answered.code_id) == ("seat", None)
    assert world.redeems(other, "bob") == ["seat"]


def test_a_code_is_refused_that_is_unknown_used_up_or_over(world):
    world.team(seats=5)
    once, short = world.code(uses=1), world.code(valid_for=timedelta(hours=1))
    world.redeems(once, "ann")

    for code, now, reason in [
        ("guess", NOON, "the code is unknown"),
        (once, NOON, "the code is used up"),
        (short, NOON + timedelta(hours=1), "the code is over"),
    ]:
        with pytest.raises(CodeRefused, match=reason):
            redeem(world.session, code, email("bob"), now)
        world.session.rollback()
    assert "bob" not in world.states()
    assert len(world.session.scalars(select(Redemption)).all()) == 1


def test_a_removed_persons_seat_is_given_on_only_when_the_gateway_has_confirmed(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann", "bob")
    world.sends()

    assert remove_member(world.session, "red", email("ann"), NOON)
    world.session.commit()
    consume(world.session, NOON, None, checkpoint=world.checkpoint)
    assert (world.states(), world.waiting()) == ({"ann": ["removing"]}, ["bob"])
    assert not remove_member(world.session, "red", email("ann"), NOON)

    world.sends("remove")
    assert world.runs("consume-waiting-queue")[-1] == "club"
    consume(world.session, NOON, "club", checkpoint=world.checkpoint)
    assert (world.states(), world.waiting()) == ({"ann": ["freed"], "bob": ["reserved"]}, [])


def test_a_person_who_was_removed_before_the_invitation_was_sent_is_never_invited(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    [invitation] = world.open_requests()

    remove_member(world.session, "red", email("ann"), NOON)
    world.session.commit()

    assert world.states() == {"ann": ["freed"]}
    assert begin(world.session, invitation, NOON) is None


@pytest.mark.parametrize("outcome", ["sent", "unknown"])
def test_a_removal_waits_for_the_outcome_of_the_invitation(world, outcome):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    [invitation] = world.open_requests()
    begin(world.session, invitation, NOON)
    if outcome == "unknown":
        leave_unknown(world.session, invitation, NOON)
    remove_member(world.session, "red", email("ann"), NOON)
    world.session.commit()
    assert world.open_requests("remove") == []

    assert confirm(world.session, invitation, NOON)
    world.session.commit()

    assert len(world.open_requests("remove")) == 1
    world.sends()
    assert world.states() == {"ann": ["freed"]}


def test_an_invitation_that_is_refused_frees_the_seat(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann", "bob")

    world.refuses()

    assert world.taken() == {"red": 0}
    consume(world.session, NOON, None, checkpoint=world.checkpoint)
    assert world.states() == {"ann": ["freed"], "bob": ["reserved"]}


def test_a_removal_that_is_refused_keeps_the_seat(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    world.sends()
    remove_member(world.session, "red", email("ann"), NOON)
    world.session.commit()

    world.refuses("remove")

    assert (world.states(), world.taken()) == ({"ann": ["removing"]}, {"red": 1})
    assert [each.kind for each in unknown_requests(world.session)] == ["remove"]
    assert remove_member(world.session, "red", email("ann"), NOON)
    assert not remove_member(world.session, "red", email("ann"), NOON)
    world.session.commit()
    world.sends("remove")
    assert (world.states(), unknown_requests(world.session)) == ({"ann": ["freed"]}, [])


def test_a_step_that_is_repeated_changes_nothing(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    [invitation] = world.open_requests()
    begin(world.session, invitation, NOON)
    assert begin(world.session, invitation, NOON).attempts == 2

    assert confirm(world.session, invitation, NOON, is_member=True)
    assert not confirm(world.session, invitation, NOON)
    assert not leave_unknown(world.session, invitation, NOON)
    assert not no_room(world.session, invitation, NOON)

    world.session.commit()
    assert world.states() == {"ann": ["member"]}


def test_a_person_for_whom_the_gateway_has_no_seat_is_the_next(world):
    world.team(seats=1)
    code = world.code()
    world.redeems(code, "ann", "bob", "cid")
    [invitation] = world.open_requests()
    begin(world.session, invitation, NOON)
    world.session.commit()

    assert no_room(world.session, invitation, NOON, status=409)
    world.session.commit()

    assert (world.states(), world.waiting()) == ({"ann": ["freed"]}, ["ann", "bob", "cid"])
    assert redeem(world.session, code, email("ann"), NOON).state == "waiting"
    assert consume(world.session, NOON, None, checkpoint=world.checkpoint)["given"] == 0
    later = NOON + timedelta(minutes=15)
    assert consume(world.session, later, None, checkpoint=world.checkpoint)["given"] == 1
    assert world.waiting() == ["bob", "cid"]


def test_more_seats_go_to_those_who_wait_at_once(world):
    world.team(seats=0)
    world.redeems(world.code(), "ann", "bob", "cid")

    assert set_seats(world.session, "red", 2, NOON) == 0
    world.session.commit()

    assert (list(world.states()), world.waiting()) == (["ann", "bob"], ["cid"])
    world.team("blue", seats=3)
    assert (world.taken(), world.waiting()) == ({"red": 2, "blue": 1}, [])


def test_seats_cannot_be_lowered_below_those_that_are_taken(world):
    world.team(seats=3)
    world.redeems(world.code(), "ann", "bob")

    with pytest.raises(SeatsTaken, match="2 seats of team 'red' are taken, so it cannot have 1; remove members first"):
        set_seats(world.session, "red", 1, NOON)
    world.session.rollback()

    assert world.session.scalar(select(Team.seats)) == 3
    assert set_seats(world.session, "red", 2, NOON) == 3


def test_a_closed_team_gives_no_seats(world):
    world.team(seats=1)
    assert close_team(world.session, "red")
    assert not close_team(world.session, "red")

    assert world.redeems(world.code(), "ann") == ["waiting"]

    assert open_team(world.session, "red", NOON)
    world.session.commit()
    assert world.states() == {"ann": ["reserved"]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seats": -1}, "bad seats=-1; expected 0 to 1,000,000"),
        ({"seats": True}, "bad seats=True"),
        ({"name": ""}, "bad name=''"),
        ({"name": "red\n"}, "bad name="),
        ({"pool": "x" * 101}, "bad pool="),
    ],
)
def test_a_bad_team_is_refused(world, options, told):
    with pytest.raises(BadValue, match=told.replace("(", r"\(")):
        add_team(world.session, **{"name": "red", "pool": "club", "seats": 1, **options})


def test_a_name_has_one_team(world):
    world.team("red")

    with pytest.raises(TeamTaken, match="there is a team with the name 'red'"):
        add_team(world.session, "red", pool="club", seats=1, now=NOON)
    with pytest.raises(TeamTaken):
        add_team(world.session, "blue", gateway_ref="red", pool="club", seats=1, now=NOON)
    with pytest.raises(UnknownTeam, match="unknown team 'green'"):
        set_seats(world.session, "green", 1, NOON)


def test_a_person_who_gives_up_is_passed_over(world):
    world.team(seats=1)
    code = world.code()
    world.redeems(code, "ann", "bob", "cid")

    assert leave_waiting(world.session, "BOB@example.org", "club", NOON)
    assert not leave_waiting(world.session, email("bob"), "club", NOON)
    world.session.commit()
    set_seats(world.session, "red", 2, NOON)
    world.session.commit()

    assert list(world.states()) == ["ann", "cid"]
    assert redeem(world.session, code, email("bob"), NOON).state == "left"


def test_a_person_whose_seat_is_being_removed_waits_and_does_not_delay_others(world):
    world.team(seats=2)
    code, other = world.code(), world.code()
    world.redeems(code, "ann", "bob")
    world.sends()
    for name in ("ann", "bob"):
        remove_member(world.session, "red", email(name), NOON)
    world.session.commit()
    assert world.redeems(other, "ann", "cid") == ["waiting", "waiting"]

    [_, of_bob] = world.open_requests("remove")
    begin(world.session, of_bob, NOON)
    confirm(world.session, of_bob, NOON)
    world.session.commit()
    consume(world.session, NOON, None, checkpoint=world.checkpoint)
    assert (world.states()["cid"], world.waiting()) == (["reserved"], ["ann"])

    world.sends("remove")
    consume(world.session, NOON, None, checkpoint=world.checkpoint)
    assert world.states()["ann"] == ["freed", "reserved"]


def test_members_whose_time_is_up_are_removed_and_others_stay(world):
    world.team(seats=3)
    world.redeems(world.code(days=1), "ann")
    world.redeems(world.code(days=2), "bob")
    world.redeems(world.code(), "cid")
    world.sends()

    extended = extend(world.session, "red", email("ann"), timedelta(days=5), NOON)
    world.session.commit()
    assert extended == NOON + timedelta(days=6)
    assert extend(world.session, "red", email("cid"), timedelta(days=5), NOON) is None
    counts = remove_expired(world.session, NOON + timedelta(days=2), checkpoint=world.checkpoint)

    assert (counts["removing"], world.states()) == (1, {"ann": ["invited"], "bob": ["removing"], "cid": ["invited"]})


def test_an_extension_after_the_end_counts_from_now(world):
    world.team(seats=1)
    world.redeems(world.code(days=1), "ann")
    now = NOON + timedelta(days=10)

    assert extend(world.session, "red", email("ann"), timedelta(days=1), now) == now + timedelta(days=1)
    with pytest.raises(BadValue, match="bad by="):
        extend(world.session, "red", email("ann"), timedelta(0), now)
    with pytest.raises(UnknownMember):
        extend(world.session, "red", email("bob"), timedelta(1), now)


def test_a_member_whom_the_gateway_does_not_have_loses_the_seat(world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    world.sends()
    seat_id = world.session.scalar(select(Seat.id))

    assert member_joined(world.session, seat_id, NOON)
    assert not member_joined(world.session, seat_id, NOON)
    assert lose(world.session, seat_id, NOON)
    assert not lose(world.session, seat_id, NOON)

    world.session.commit()
    assert (world.states(), world.taken()) == ({"ann": ["freed"]}, {"red": 0})


class TestMove:
    @pytest.fixture
    def moving(self, world):
        world.team("red", seats=1)
        world.redeems(world.code(), "ann")
        world.sends(is_member=True)
        world.team("blue", seats=1)
        move_member(world.session, email("ann"), "red", "blue", NOON)
        world.session.commit()
        return world

    def test_the_old_seat_is_removed_after_the_new_one_is_confirmed(self, moving):
        assert (moving.states(), moving.moves()) == ({"ann": ["member", "reserved"]}, ["inviting"])
        assert moving.open_requests("remove") == []

        moving.sends("invite")
        assert (moving.states(), moving.moves()) == ({"ann": ["removing", "invited"]}, ["removing"])

        moving.sends("remove")
        assert (moving.states(), moving.moves()) == ({"ann": ["freed", "invited"]}, ["done"])
        assert not moving.session.scalars(select(Seat.is_target).where(Seat.is_target)).all()

    def test_the_answer_to_a_person_who_has_moved_is_the_new_seat(self, world):
        world.team("red", seats=1)
        code = world.code()
        world.redeems(code, "ann")
        world.sends()
        world.team("blue", seats=1)
        move_member(world.session, email("ann"), "red", "blue", NOON)
        world.session.commit()

        answers = [redeem(world.session, code, email("ann"), NOON)]
        for kind in ("invite", "remove"):
            world.session.rollback()
            world.sends(kind)
            answers.append(redeem(world.session, code, email("ann"), NOON))

        assert [(each.state, each.team) for each in answers] == [("seat", "red"), ("seat", "blue"), ("seat", "blue")]

    def test_a_new_team_that_refuses_leaves_the_old_seat(self, moving):
        moving.refuses("invite")

        assert (moving.states(), moving.moves()) == ({"ann": ["member", "freed"]}, ["failed"])
        assert moving.taken() == {"red": 1, "blue": 0}

    def test_a_person_for_whom_the_new_team_has_no_seat_stays_and_does_not_wait(self, moving):
        [invitation] = moving.open_requests()
        begin(moving.session, invitation, NOON)

        assert no_room(moving.session, invitation, NOON)
        moving.session.commit()

        assert (moving.states(), moving.waiting()) == ({"ann": ["member", "freed"]}, [])

    def test_a_person_who_is_moving_is_neither_moved_nor_removed_nor_extended(self, moving):
        for act in (
            lambda: move_member(moving.session, email("ann"), "red", "blue", NOON),
            lambda: remove_member(moving.session, "red", email("ann"), NOON),
            lambda: remove_member(moving.session, "blue", email("ann"), NOON),
            lambda: extend(moving.session, "red", email("ann"), timedelta(1), NOON),
        ):
            with pytest.raises(MoveUnderWay):
                act()
            moving.session.rollback()

    def test_time_that_is_up_during_a_move_counts_after_it(self, moving):
        end = NOON + timedelta(days=1)
        moving.session.query(Seat).update({"expires_at": end})
        moving.session.commit()

        begin(moving.session, moving.open_requests()[0], NOON)
        assert remove_expired(moving.session, end, checkpoint=moving.checkpoint)["moving"] == 2
        moving.sends("invite")
        moving.sends("remove")

        assert remove_expired(moving.session, end, checkpoint=moving.checkpoint)["removing"] == 1

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("ann", "red", "red"), "the person has a seat of team 'red'"),
            (("ann", "red", "full"), "team 'full' has no free seat"),
            (("ann", "red", "shut"), "team 'shut' is closed"),
            (("bob", "red", "blue"), "the person has no seat of team 'red'"),
            (("ann", "red", "none"), "unknown team 'none'"),
        ],
    )
    def test_a_move_that_is_impossible_is_refused_in_a_sentence(self, world, words, told):
        world.team("red", seats=1)
        world.redeems(world.code(), "ann")
        world.team("blue", seats=1)
        world.team("full", seats=0)
        world.team("shut", seats=1)
        close_team(world.session, "shut")
        world.session.commit()

        name, old, new = words
        with pytest.raises(Exception, match=told):
            move_member(world.session, email(name), old, new, NOON)

        world.session.rollback()
        assert world.states() == {"ann": ["reserved"]}

    def test_a_person_who_waits_in_the_other_pool_waits_no_more(self, world):
        world.team("red", seats=1)
        world.redeems(world.code(), "ann")
        world.team("vip", seats=0, pool="vips")
        assert world.redeems(world.code(pool="vips"), "bob", "ann") == ["waiting", "waiting"]
        leave_waiting(world.session, email("bob"), "vips", NOON)
        world.session.execute(Team.__table__.update().where(Team.name == "vip").values(seats=1))
        world.session.commit()

        move_member(world.session, email("ann"), "red", "vip", NOON)
        world.session.commit()

        assert world.waiting() == []
        assert len(world.session.scalars(select(Request)).all()) == 2
