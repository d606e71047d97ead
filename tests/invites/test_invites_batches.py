"""A list of people with duplicates and broken lines: each such line is reported, and the rest is invited."""

import os

import pytest
from invites_world import NOON, check, email
from sqlalchemy import func, select, text

from plugins.invites import add_team, batches, invite_many, normalize, preview, redeem
from plugins.invites.batches import HAS_SEAT, WAITS, list_problems
from plugins.invites.consuming import consume
from plugins.invites.errors import BadValue
from plugins.invites.models import BatchProblem, Waiting

#: INVITES_LINES=100000 is the full size.
LINES = int(os.environ.get("INVITES_LINES", "2000"))


def test_lines_that_invite_nobody_are_reported_and_the_others_are_invited_in_order(world):
    world.team(seats=2)
    world.redeems(world.code(), "ann")
    lines = [email("bob"), "no address", email("ann"), " BOB@example.org\n", email("cid"), ""]
    foreseen = preview(world.session, lines, "club", NOON)

    report = invite_many(world.session, lines, "club", NOON)
    world.session.commit()

    assert report.problems == {
        2: "the address has no @",
        3: HAS_SEAT,
        4: "the same address as in line 1",
        6: "the address is empty",
    }
    assert (report.lines, report.seats, report.waiting) == (6, 1, 1)
    assert (foreseen.seats, foreseen.waiting, foreseen.problems) == (1, 1, report.problems)
    assert [each.line for each in list_problems(world.session, report.batch_id)] == [2, 3, 4, 6]
    assert (list(world.states()), world.waiting()) == (["ann", "bob"], ["cid"])


def test_a_list_that_is_imported_twice_invites_nobody_twice(world):
    world.team(seats=1)
    lines = [email("ann"), email("bob")]
    invite_many(world.session, lines, "club", NOON)
    world.session.commit()

    again = invite_many(world.session, lines, "club", NOON)

    assert (again.seats, again.waiting, again.problems) == (0, 0, {1: HAS_SEAT, 2: WAITS})


def test_people_who_ask_themselves_are_before_those_of_a_list(world):
    world.team(seats=0)
    code = world.code()
    invite_many(world.session, [email("ann"), email("bob"), email("cid")], "club", NOON)
    world.session.commit()

    assert world.redeems(code, "dan", "cid") == ["waiting", "waiting"]
    assert world.waiting() == ["cid", "dan", "ann", "bob"]
    assert redeem(world.session, code, email("dan"), NOON).ahead == 1


def test_a_list_that_is_too_long_or_has_a_bad_pool_changes_nothing(world, monkeypatch):
    monkeypatch.setattr("plugins.invites.batches.MOST_LINES", 2)

    with pytest.raises(BadValue, match="bad emails='more than 2 lines'; expected fewer; divide the list"):
        invite_many(world.session, [email("ann")] * 3, "club", NOON)
    with pytest.raises(BadValue, match="bad pool=''"):
        invite_many(world.session, [email("ann")], "", NOON)
    with pytest.raises(BadValue, match="bad days=0"):
        invite_many(world.session, [email("ann")], "club", NOON, days=0)


def test_a_long_list_with_duplicates_and_broken_lines(world):
    """Every tenth line repeats the line before, and every seventh of the others is broken."""
    lines = []
    for number in range(1, LINES + 1):
        is_repeated = number % 10 == 0
        lines.append(
            lines[-1].upper() if is_repeated else email(f"user-{number}") if number % 7 else f"broken {number}"
        )
    people = [line for number, line in enumerate(lines, start=1) if "@" in line and number % 10]
    add_team(world.session, "red", pool="club", seats=len(people) - 10, now=NOON)

    report = invite_many(world.session, lines, "club", NOON)
    world.session.commit()

    assert report.seats == min(1000, len(people) - 10)
    assert (report.waiting + report.seats, len(report.problems)) == (len(people), LINES - len(people))
    assert world.session.scalar(select(func.count()).select_from(BatchProblem)) == LINES - len(people)
    asked = world.session.scalars(select(Waiting.email).order_by(Waiting.id)).all()
    assert asked == people

    consume(world.session, NOON, None, checkpoint=world.checkpoint)
    assert world.waiting() == [line.partition("@")[0] for line in people[-10:]]
    check(world.session)


def test_the_turn_of_the_pool_is_taken_after_the_list_was_read(world, monkeypatch):
    world.team(seats=1)
    held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
    seen: list[int] = []

    def looking(address: str) -> str:
        seen.append(world.session.scalar(held))
        return normalize(address)

    monkeypatch.setattr(batches, "normalize", looking)
    invite_many(world.session, [email("ann"), email("bob")], "club", NOON)

    assert seen == [0, 0]
    assert world.session.scalar(held) == 1
