"""The pages of schedules: their strips, the slots of one schedule, and what people do with it."""

import pytest

from core.plugins import loading
from tests.support import showcase
from tests.support.pages import BROWSER, OURS, read
from tests.support.web import bearer, serving


@pytest.fixture
def client(database):
    with loading.using(showcase.registry()), serving() as client:
        client.headers.update(BROWSER)
        yield client


@pytest.fixture
def filled(database, client):
    """The service with the ledger of its last days."""
    showcase.fill(database, showcase.registry())
    return client


@pytest.fixture
def viewer(database):
    return bearer(database, "viewer")


@pytest.fixture
def operator(database):
    return bearer(database, "operator")


def test_schedules_with_trouble_come_first(filled, viewer, ledger):
    page = read(filled.get("/schedules", headers=viewer))

    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))
    assert page.text.index("check-expired-coupons") < page.text.index("As they should be")
    assert "9 schedules" in page.text
    dead = ledger.value("SELECT min(slot) FROM rota_runs WHERE job = 'check-expired-coupons' AND state = 'dead'")
    assert f"/why?job=check-expired-coupons&at={dead:%Y-%m-%dT%H%%3A%M%%3A%SZ}" in page.links


@pytest.mark.parametrize("span", ["7d", "90d"])
def test_the_long_spans_tell_how_many_slots_were_in_time(filled, viewer, span):
    page = read(filled.get("/schedules", params={"span": span}, headers=viewer))

    assert page.inline == []
    assert "In time" in page.text
    assert " %" in page.text


def test_a_filter_stays_when_the_span_changes(filled, viewer):
    page = read(filled.get("/schedules", params={"plugin": "expiry"}, headers=viewer))

    assert "check-expired-points" in page.text
    assert "daily-statistics" not in page.text
    assert any("plugin=expiry" in link and "span=7d" in link for link in page.links)


def test_one_schedule_lists_its_slots_with_their_reasons(filled, viewer):
    page = read(filled.get("/schedules/check-expired-coupons", headers=viewer))

    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))
    assert "dead: retries" in page.text
    assert "to come" in page.text
    assert page.posts() == {"/logout"}  # a viewer sees no button that would be refused


def test_one_key_has_a_page(filled, viewer):
    page = read(filled.get("/schedules/poll-mailbox", params={"key": "mailbox-17"}, headers=viewer))

    assert "mailbox-17" in page.text
    assert "paused" in page.text


def test_all_keys_of_a_job_have_one_page(filled, viewer):
    page = read(filled.get("/schedules/poll-mailbox", headers=viewer))

    assert "40 keys" in page.text
    assert "Each key has its own slots" in page.text


def test_a_job_without_a_schedule_has_no_page(client, viewer):
    assert client.get("/schedules/process-email", headers=viewer).status_code == 404


def test_a_service_without_slots_says_so(client, viewer):
    assert "no slot yet" in read(client.get("/schedules", headers=viewer)).text


def test_run_now_pause_and_resume(client, operator, ledger):
    address = "/schedules/daily-statistics"
    assert read(client.get(address, headers=operator)).posts() == {f"{address}/run", f"{address}/pause", "/logout"}

    client.post(f"{address}/run", data={"back": address}, headers={**operator, **OURS})
    wanted = {"reason": "a repair", "back": address}
    page = read(client.post(f"{address}/pause", data=wanted, headers={**operator, **OURS}))

    (run,) = ledger.runs("daily-statistics")
    assert (run.slot, run.state) == (None, "queued")
    assert "daily-statistics is paused until somebody ends it." in page.text
    assert page.posts() == {f"{address}/run", f"{address}/resume", "/logout"}

    client.post(f"{address}/resume", data={"back": address}, headers={**operator, **OURS})
    assert ledger.value("SELECT count(*) FROM rota_pauses WHERE until > now()") == 0


def test_run_now_that_is_sent_twice_requests_one_run(client, operator, ledger):
    address = "/schedules/daily-statistics"
    (form,) = [form for form in read(client.get(address, headers=operator)).forms if form.action == f"{address}/run"]

    for _ in range(2):
        assert client.post(form.action, data=form.fields, headers={**operator, **OURS}).status_code == 200

    assert len(ledger.runs("daily-statistics")) == 1


@pytest.mark.parametrize("until", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"])
def test_a_time_at_the_end_of_the_calendar_is_refused(client, operator, until):
    answer = client.get("/schedules/daily-statistics", params={"until": until}, headers=operator)

    assert answer.status_code == 409
    assert "from 1971 to 2199" in read(answer).text


@pytest.mark.parametrize("deed", ["run", "pause", "resume"])
def test_a_viewer_is_refused(client, viewer, deed):
    assert client.post(f"/schedules/daily-statistics/{deed}", headers={**viewer, **OURS}).status_code == 403
