"""The routes of the plugin: teams, the waiting list, requests of unknown outcome, and the import of a list."""

import pytest
from invites_world import NOON, check, email
from pydantic import SecretStr

from plugins.invites.outcomes import begin
from tests.support.pages import BROWSER, read
from tests.support.web import serving

BASE, TOKEN = "/api/v1/plugins/invites", "x" * 32


@pytest.fixture
def client(world, environment):
    with serving(web_token=SecretStr(TOKEN)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def test_teams_seats_and_those_who_wait_are_listed(client, world):
    world.team(seats=1)
    world.redeems(world.code(), "ann", "bob")

    [team] = client.get(f"{BASE}/teams").json()
    assert (team["name"], team["seats"], team["taken"]) == ("red", 1, 1)
    [seat] = client.get(f"{BASE}/teams/red").json()
    assert (seat["email"], seat["state"]) == (email("ann"), "reserved")
    assert client.get(f"{BASE}/teams/red?after={seat['id']}").json() == []
    assert [each["email"] for each in client.get(f"{BASE}/waiting?pool=club").json()] == [email("bob")]
    assert client.get(f"{BASE}/teams/blue").status_code == 404


def test_teams_seats_and_those_who_wait_have_pages(client, world):
    world.team(seats=1)
    world.redeems(world.code(), "ann", "bob")

    teams = read(client.get("/plugins/invites/teams", headers=BROWSER))
    assert "/plugins/invites/teams/red" in teams.links
    assert email("ann") in read(client.get("/plugins/invites/teams/red", headers=BROWSER)).text
    assert email("bob") in read(client.get("/plugins/invites/waiting", headers=BROWSER)).text
    assert {"/plugins/invites/orphans", "/plugins/invites/requests/unknown"} <= {*teams.links}


def test_seats_are_changed_and_members_moved_and_removed(client, world):
    world.team("red", seats=2)
    world.team("blue", seats=1)
    world.redeems(world.code(), "ann", "bob")
    world.sends()

    assert client.post(f"{BASE}/teams/red/seats", json={"seats": 3}).json()["seats"] == 3
    refused = client.post(f"{BASE}/teams/red/seats", json={"seats": 1})
    assert (refused.status_code, "2 seats of team 'red' are taken" in refused.json()["detail"]) == (409, True)
    assert client.post(f"{BASE}/teams/red/move", json={"email": email("ann"), "to_team": "blue"}).json() == {"move": 1}
    cancelled = [client.post(f"{BASE}/teams/red/cancel-move", json={"email": email("ann")}).json() for _ in range(2)]
    assert cancelled == [{"cancelled": True}, {"cancelled": False}]
    assert client.post(f"{BASE}/teams/red/remove", json={"email": email("bob")}).json() == {"begun": True}
    assert client.post(f"{BASE}/teams/red/remove", json={"email": email("cid")}).status_code == 404
    check(world.session)


def test_requests_of_unknown_outcome_are_shown_without_addresses(client, world):
    world.team(seats=1)
    world.redeems(world.code(), "ann")
    begin(world.session, world.open_requests()[0], NOON)
    world.session.commit()

    listed = client.get(f"{BASE}/requests/unknown")

    assert (listed.json()[0]["team"], listed.json()[0]["state"]) == ("red", "sent")
    assert "ann" not in listed.text


def test_orphans_are_listed_kept_and_removed(client, world):
    world.orphans("eve", "fay")

    assert [each["email"] for each in client.get(f"{BASE}/orphans").json()] == [email("eve"), email("fay")]
    assert client.post(f"{BASE}/orphans/1/keep").json() == {"changed": True}
    run_id = client.post(f"{BASE}/orphans/2/remove").json()["run"]
    assert [each["state"] for each in client.get(f"{BASE}/orphans").json()] == ["kept", "confirmed"]
    assert (run_id > 0, len(world.runs("detect-orphan-users"))) == (True, 1)
    assert client.post(f"{BASE}/orphans/3/keep").status_code == 404


def test_a_list_is_previewed_and_imported(client, world):
    world.team(seats=1)
    body = {"pool": "club", "emails": [email("ann"), "broken", email("bob")], "days": 3}

    previewed = client.post(f"{BASE}/batches/preview", json=body).json()
    assert (previewed["seats"], previewed["waiting"], previewed["batch_id"]) == (1, 1, None)
    assert previewed["problems"] == {"2": "the address has no @"}
    assert world.waiting() == []

    assert client.post(f"{BASE}/batches", json=body).json() == {**previewed, "batch_id": 1}
    assert (world.states(), world.waiting()) == ({"ann": ["reserved"]}, ["bob"])
