"""The conditions in the address of a list: every link, form and plan of the page has exactly these."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from core import job
from core.jobs.registry import Plugin, Registry
from core.ledger import search
from core.plugins import loading
from core.upkeep import carry_out_operation
from tests.support.pages import BROWSER, OURS, read
from tests.support.web import bearer, serving

NOW = datetime.now(UTC)


@job("sync", queue="slow")
def sync(run, customer: int = 0, region: str = ""):
    """Sync."""


@job("poll", queue="mail")
def poll(run, customer: int = 0):
    """Poll."""


@pytest.fixture(autouse=True)
def registry(database):
    core = Plugin("core", "", "", (carry_out_operation,))
    with loading.using(Registry((Plugin("billing", "", "", (sync,)), Plugin("mail", "", "", (poll,)), core))) as found:
        yield found


@pytest.fixture
def client(registry):
    with serving() as client:
        client.headers.update(BROWSER)
        yield client


@pytest.fixture
def operator(database):
    return bearer(database, "operator")


@pytest.fixture
def dead(ledger):
    def insert(job="sync", args=None, ago=timedelta(), **columns):
        given = {"state": "dead", "reason": "retries", "finished_at": NOW - ago, "queued_at": NOW - ago, **columns}
        return ledger.request(
            job, queue={"sync": "slow", "poll": "mail"}.get(job, "old"), args=json.dumps(args or {}), **given
        )

    return insert


CONDITIONS = [
    ("job=sync", 5),
    ("key=k", 1),
    ("queue=mail", 1),
    ("plugin=billing", 5),
    ("reason=crashes", 1),
    ("error=boom", 1),
    ("since=2h", 5),
    ("until=2h", 2),
    ("arg=customer:42", 3),
    ("job=sync&arg=customer:42", 2),
    ("job=sync&arg=customer:42&arg=region:uk", 1),
    ("job=poll&job=sync&colour=red&path=1", 5),
]


@pytest.mark.parametrize(("asked", "total"), CONDITIONS)
def test_a_plan_of_all_that_match_has_the_runs_of_the_list(client, operator, dead, asked, total):
    dead(args={"customer": 42, "region": "uk"})
    dead(args={"customer": 42, "region": "fr"}, key="k")
    dead(args={"customer": 43}, ago=timedelta(hours=3))
    dead(reason="crashes")
    dead(error="Boom 1")
    dead("poll", args={"customer": 42})
    dead("gone", args={"customer": 42}, ago=timedelta(hours=3))
    listed = client.get(f"/api/v1/runs?state=dead&{asked}", headers=operator).json()["items"]

    page = read(client.get(f"/runs?state=dead&{asked}", headers=operator))
    (form,) = [form for form in page.forms if form.action == "/plans" and form.hidden]
    plan = client.post(form.action, data={**form.hidden, "action": "drop"}, headers={**operator, **OURS})

    assert len(listed) == total
    assert f"Drop {total} runs?" in read(plan).text
    assert "Selected by" in read(plan).text


@pytest.mark.parametrize("sent", [{"colour": "red"}, {"job": ["sync", "poll"]}, {"args": "customer:42"}])
def test_a_field_that_a_plan_does_not_have_is_refused(client, operator, dead, sent):
    dead()

    answer = client.post("/plans", data={"action": "drop", "state": "dead", **sent}, headers={**operator, **OURS})

    assert answer.status_code == 422


def test_a_group_whose_errors_share_nothing_that_may_be_searched_has_no_plan(client, database, operator, dead):
    """Such a plan would have all dead runs of the job."""
    dead(error="42"), dead(error="Boom")
    blind = bearer(database, "operator", "blind", sees_arguments=False)

    seen, unseen = (read(client.get("/failures", headers=headers)) for headers in (operator, blind))

    assert [form.hidden["error"] for form in seen.forms if form.action == "/plans"] == [["Boom"]]
    assert [form for form in unseen.forms if form.action == "/plans"] == []
    assert "/runs?job=sync&state=dead&reason=retries&since=168h" in unseen.links


def test_a_search_that_has_not_ended_says_so_and_goes_on(client, operator, dead, monkeypatch):
    monkeypatch.setattr(search, "MOST_LOOKED_AT", 1)
    monkeypatch.setattr(search, "LARGEST", 1)
    wanted = dead(error="needle", ago=timedelta(hours=3))
    for hours in (2, 1):
        dead(error="hay", ago=timedelta(hours=hours))
    seen, link = [], "/runs?error=needle"

    for _ in range(9):
        page = read(client.get(link, headers=operator))
        seen.append(page.text)
        if f"/runs/{wanted}" in page.links:
            break
        (link,) = [each for each in page.links if "cursor=" in each and each != link]

    assert "No run so far" in seen[0]
    assert "No run matches" not in "".join(seen)
    assert "has looked back to" in seen[0]
    assert f"/runs/{wanted}" in page.links


@pytest.mark.parametrize("path", ["/runs?path=1&prefix=2", "/schedules?path=1", "/audit?path=1", "/operations?path=1"])
@pytest.mark.parametrize("further", ["", "&name=x&self=1&query=2&limit=1"])
def test_the_name_of_a_parameter_is_no_fault_of_the_service(client, database, dead, path, further):
    dead(), dead()

    answer = client.get(path + further, headers=bearer(database, "admin"))

    assert answer.status_code == 200
    own = path + further  # the link that loads the list again
    assert [link for link in read(answer).links if "path=1" in link and link != own] == []
