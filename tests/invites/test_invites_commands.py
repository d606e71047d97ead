"""``rota invites …``: the commands call the functions that applications call."""

import json

import pytest
from click.testing import CliRunner
from invites_world import NOON, check
from sqlalchemy import select

from core.cli import main
from plugins.invites.models import Batch, Waiting
from plugins.invites.outcomes import begin


@pytest.fixture
def rota(session, tmp_path, monkeypatch, environment):
    monkeypatch.chdir(tmp_path)
    return lambda *words, **options: CliRunner().invoke(main, ("invites", *words), catch_exceptions=False, **options)


def test_teams_are_added_changed_and_listed(rota, world):
    assert rota("teams").stdout == "no teams; `rota invites add-team` adds one\n"
    assert rota("add-team", "red", "--pool", "club", "--seats", "1").stdout == "added red as team 1\n"
    world.redeems(world.code(), "ann", "bob")

    assert rota("set-seats", "red", "2").stdout == "red has 2 seats, and had 1\n"
    assert rota("close", "red").stdout == "closed red\n"
    [listed] = json.loads(rota("teams", "--json").stdout)
    assert (listed["seats"], listed["taken"], listed["state"]) == (2, 2, "closed")
    assert rota("open", "red").stdout == "opened red\n"
    assert rota("open", "red").stdout == "red is open already\n"
    assert [each["email"][:3] for each in json.loads(rota("seats", "red", "--json").stdout)] == ["ann", "bob"]


def test_members_are_removed_moved_and_given_more_time(rota, world):
    world.team("red", seats=2)
    world.team("blue", seats=1)
    world.redeems(world.code(days=1), "ann", "bob")
    world.sends()

    assert rota("extend", "red", "ann@example.org", "--days", "2").stdout.startswith("the seat ends 2")
    assert rota("move", "ann@example.org", "red", "blue").stdout == "move 1 has begun\n"
    assert rota("cancel-move", "ann@example.org", "red").stdout == "the person keeps the old seat\n"
    assert rota("cancel-move", "ann@example.org", "red").stdout == "the person is not moving\n"
    assert rota("remove", "red", "bob@example.org", input="n\n").exit_code == 1
    assert world.states()["bob"] == ["invited"]
    assert rota("remove", "red", "bob@example.org", "--yes").stdout == "the removal is requested\n"
    assert rota("remove", "red", "bob@example.org", "--yes").stdout == "the removal is under way already\n"
    check(world.session)


def test_a_code_is_printed_once_and_gives_a_seat(rota, world):
    world.team(seats=1)

    made = rota("code", "--pool", "club", "--uses", "2").stdout.strip()

    assert world.redeems(made, "ann", "bob") == ["seat", "waiting"]
    assert rota("waiting").stdout.splitlines()[1].split("\t")[1:3] == ["club", "bob@example.org"]
    assert rota("leave", "bob@example.org", "--pool", "club").stdout == "the person waits no more\n"
    assert rota("waiting", "--pool", "club").stdout == "nobody waits\n"


def test_requests_of_unknown_outcome_are_listed_without_addresses(rota, world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    assert rota("unknown").stdout == "the outcome of every request is known\n"
    begin(world.session, world.open_requests()[0], NOON)
    world.session.commit()

    listed = rota("unknown", "--json").stdout

    [found] = json.loads(listed)
    assert (found["kind"], found["team"], found["state"], found["attempts"]) == ("invite", "red", "sent", 1)
    assert "ann" not in listed


def test_orphans_are_listed_kept_and_removed(rota, world):
    assert rota("orphans").stdout == "no orphans\n"
    world.orphans("eve", "fay")

    assert [each["email"] for each in json.loads(rota("orphans", "--json").stdout)] == [
        "eve@example.org",
        "fay@example.org",
    ]
    assert rota("keep-orphan", "1").stdout == "orphan 1 stays\n"
    assert rota("keep-orphan", "1").stdout == "that orphan 1 stays was decided already\n"
    assert rota("remove-orphan", "2", input="n\n").exit_code == 1
    assert world.runs("detect-orphan-users") == []
    assert rota("remove-orphan", "2", "--yes").stdout.endswith(" removes orphan 2\n")
    assert len(world.runs("detect-orphan-users")) == 1
    assert "unknown orphan 3" in rota("keep-orphan", "3").stderr


def test_an_import_shows_what_will_happen_and_asks(rota, world, tmp_path):
    world.team(seats=1)
    people = tmp_path / "people.txt"
    people.write_bytes(
        b"\xef\xbb\xbfann@example.org\r\nbob@example.org\r\nANN@example.org\r\n\xff\r\n\r\ncid@example.org"
    )
    problems = tmp_path / "problems.txt"
    told = "6 lines: 1 people would have a seat at once, 2 would wait\n3 lines invite nobody"

    previewed = rota("import", "people.txt", "--pool", "club", "--preview")
    assert previewed.stdout.startswith(f"{told}:\n  line 3\tthe same address as in line 1\n  line 4\t")
    assert rota("import", "people.txt", "--pool", "club", input="n\n").exit_code == 1
    world.session.rollback()
    assert world.session.scalars(select(Batch)).all() == []

    done = rota("import", "people.txt", "--pool", "club", "--yes", "--problems", str(problems))
    assert done.stdout == f"{told}; see {problems}\nbatch 1: 1 have a seat, 2 wait\n"
    assert problems.read_text().splitlines()[2] == "5\tthe address is empty"
    assert rota("problems", "1").stdout.count("\n") == 4
    assert world.waiting() == ["bob", "cid"]
    assert len(world.session.scalars(select(Waiting)).all()) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("set-seats", "red", "0"), "1 seats of team 'red' are taken, so it cannot have 0; remove members first"),
        (("set-seats", "blue", "1"), "unknown team 'blue'; `rota invites teams` has their names"),
        (("remove", "red", "nobody", "--yes"), "the address has no @"),
        (("remove", "red", "bob@example.org", "--yes"), "the person has no seat of team 'red'"),
        (("move", "ann@example.org", "red", "red"), "the person has a seat of team 'red' or of its pool already"),
        (("add-team", "red", "--pool", "club", "--seats", "1"), "there is a team with the name 'red'"),
    ],
)
def test_an_error_is_a_sentence(rota, world, words, told):
    world.team(seats=1)
    world.redeems(world.code(), "ann")

    refused = rota(*words)

    assert (refused.exit_code, told in refused.stderr) == (1, True), refused.stderr
