"""The strips of schedules, from the rows of a real ledger."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, text

from core import Keyed, cron, every, job
from core.errors import ScheduleError
from core.ledger import releases
from core.operations import strips
from core.operations.access import View
from tests.support.web import bearer

PAGES = ("/schedules", "/schedules/hourly")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@job("hourly", queue="billing", schedule=every(hours=1), hard_limit=timedelta(days=2), soft_limit=timedelta(days=1))
def hourly(run):
    """Work. This job has a cell for each slot."""


@job("frequent", queue="billing", schedule=every(minutes=1))
def frequent(run):
    """Work. This job has so many slots that a cell shows several."""


@job("poll", queue="mail", keyed=Keyed(least=MINUTE, most=DAY, default=every(minutes=5)))
def poll(run):
    """Poll. The keys of this job have schedules."""


@job("daily", queue="billing", schedule=cron("40 3 * * *", tz="Europe/London"))
def daily(run):
    """Work. No slot of this job is on record."""


@pytest.fixture
def registry(use_jobs):
    return use_jobs(hourly, frequent, poll, daily)


@pytest.fixture
def now(ledger):
    return ledger.value("SELECT clock_timestamp()").replace(microsecond=0)


@pytest.fixture
def whole(now):
    """Return the last whole hour."""
    return now.replace(minute=0, second=0)


def add(ledger, name, slot, state="succeeded", *, late=timedelta(seconds=1), **columns):
    """Record a slot with its run. Return the run's id."""
    started = None if state in {"missed", "skipped", "queued"} else slot + late
    finished = None if state in {"queued", "running", "retrying"} else slot + late + MINUTE
    values = {"attempt": 0 if started is None else 1, "queue": "billing", **columns}
    return ledger.request(name, slot=slot, state=state, started_at=started, finished_at=finished, **values)


def account(ledger, registry, *jobs):
    """Record that the slots of these jobs are accounted for until now."""
    for each in jobs:
        ledger.do(
            "INSERT INTO rota_schedules (job, spec, accounted_until) VALUES (:job, :spec, now())",
            job=each.name,
            spec=str(each.schedule),
        )


@pytest.fixture
def board(database, registry):
    def read(span="24h", **options):
        with database.connect() as connection:
            return strips.board(connection, registry, span, **options).shape()

    return read


def strip(found, name):
    (only,) = [each for each in found.items if each.job == name]
    return only


def told(found, name):
    """Return the cells of a schedule, without those of successes and of slots that are still to come."""
    cells = strip(found, name).cells
    return [(c.outcome, c.count, c.slots, c.reason) for c in cells if c.outcome not in {"succeeded", "to come"}]


def test_each_slot_of_a_slow_schedule_has_a_cell(ledger, board, whole):
    add(ledger, "hourly", whole - 5 * HOUR)
    dead = add(ledger, "hourly", whole - 4 * HOUR, "dead", reason="retries")
    add(ledger, "hourly", whole - 3 * HOUR, "missed", reason="grace")
    add(ledger, "hourly", whole - 2 * HOUR, attempt=2)
    add(ledger, "hourly", whole - 1 * HOUR, late=5 * MINUTE)

    found = board()

    assert told(found, "hourly") == [
        ("dead", 1, 1, "retries"),
        ("missed", 1, 1, "grace"),
        ("retrying", 1, 1, None),
        ("late", 1, 1, None),
    ]
    (cell,) = [each for each in strip(found, "hourly").cells if each.outcome == "dead"]
    assert (cell.run, cell.first, cell.after) == (dead, whole - 4 * HOUR, whole - 4 * HOUR)
    assert (strip(found, "hourly").due, strip(found, "hourly").in_time) == (5, 2)


def test_a_bin_shows_its_worst_slot(ledger, board, whole):
    start = whole - 2 * HOUR
    for minute in range(15):
        add(ledger, "frequent", start + minute * MINUTE)
    for minute in range(15, 18):
        add(ledger, "frequent", start + minute * MINUTE, "missed", reason="superseded")
    add(ledger, "frequent", start + 18 * MINUTE, "skipped", reason="overlap")
    add(ledger, "frequent", start + 19 * MINUTE)

    assert told(board(), "frequent") == [("missed", 3, 5, "superseded")]


@pytest.mark.parametrize("span", ["7d", "90d"])
def test_the_long_spans_have_one_bin_for_many_slots(ledger, board, whole, span):
    day = (whole - 2 * DAY).replace(hour=12)
    for minute in range(0, 50, 10):
        add(ledger, "hourly", day + minute * MINUTE)
    add(ledger, "hourly", day + 55 * MINUTE, "dead", reason="retries")

    assert told(board(span), "hourly") == [("dead", 1, 6, "retries")]


def test_slots_that_are_not_on_record_are_a_gap(ledger, registry, board, whole):
    account(ledger, registry, hourly)
    add(ledger, "hourly", whole - 20 * HOUR)
    add(ledger, "hourly", whole - 18 * HOUR)

    cells = strip(board(), "hourly").cells

    assert [each.outcome for each in cells if each.outcome != "to come"] == [
        *["not on record"] * bool([each for each in cells if each.before <= whole - 20 * HOUR]),
        "succeeded",
        "not on record",
        "succeeded",
        "not on record",
    ]


def test_before_a_changed_schedule_was_seen_nothing_is_expected(database, ledger, registry, board, whole, use_jobs):
    account(ledger, registry, hourly)
    release = releases.of(registry)
    with database.begin() as connection:
        releases.record(connection, release)
    ledger.do("UPDATE rota_releases SET first_seen_at = :at", at=whole - 4 * HOUR + MINUTE)

    (gap,) = [each for each in strip(board(), "hourly").cells if each.outcome == "not on record"]

    assert gap.after == whole - 3 * HOUR


def test_a_job_that_nothing_has_seen_has_no_gap(board):
    assert [each.outcome for each in strip(board(), "daily").cells if each.outcome != "to come"] == []
    assert strip(board(), "daily").standing == "no slot yet"


def test_slots_at_work_and_waiting_are_shown(ledger, board, now):
    slot = now - timedelta(seconds=5)
    add(ledger, "frequent", slot, "running")
    add(ledger, "frequent", slot + timedelta(seconds=1), "queued")
    add(ledger, "hourly", now - 2 * MINUTE, "queued")

    found = board()

    assert told(found, "frequent")[-1][0] == "running"
    assert told(found, "hourly")[-1][0] == "late"


def test_slots_in_a_pause_are_not_due(ledger, board, whole):
    add(ledger, "hourly", whole - 2 * HOUR)
    add(ledger, "hourly", whole - 1 * HOUR, "skipped", reason="paused")
    ledger.do("INSERT INTO rota_pauses (scope, paused_by, reason) VALUES ('queue:billing', 'ann', 'the bank is down')")

    found = strip(board(), "hourly")

    assert (found.due, found.in_time, found.standing) == (1, 1, "paused")
    assert [pause.reason for pause in found.pauses] == ["the bank is down"]


class TestKeys:
    @pytest.fixture
    def keys(self, ledger, whole):
        for key in ("a", "b"):
            ledger.do(
                """INSERT INTO rota_key_schedules
                       (job, key, plugin, spec, every_seconds, phase, is_seen, since, changed_by)
                   VALUES ('poll', :key, 'tests', 'every 5m', 300, 0, true, :since, 'ann')""",
                key=key,
                since=whole - 3 * HOUR,
            )

    def test_all_keys_of_a_job_have_one_strip(self, ledger, board, keys, whole):
        add(ledger, "poll", whole - 2 * HOUR, key="a")
        add(ledger, "poll", whole - HOUR, "dead", key="b", reason="retries")
        ledger.do(
            """INSERT INTO rota_gaps (job, key, began_at, ended_at, reason, slots)
               VALUES ('poll', NULL, :began, :ended, 'outage', 480)""",
            began=whole - 90 * MINUTE,
            ended=whole - 60 * MINUTE - MINUTE,
        )

        found = board()

        assert told(found, "poll") == [("missed", 480, 480, "outage"), ("dead", 1, 1, "retries")]
        assert strip(found, "poll").schedule == "2 keys"
        assert strip(found, "poll").due is None

    def test_one_key_has_a_strip_of_its_own(self, database, ledger, registry, keys, whole):
        for minute in range(5, 65, 5):
            add(ledger, "poll", whole - 3 * HOUR + minute * MINUTE, key="a")
        add(ledger, "poll", whole - 2 * HOUR + 20 * MINUTE, "dead", key="a", reason="retries")
        add(ledger, "poll", whole - 2 * HOUR + 20 * MINUTE, "dead", key="b", reason="retries")

        with database.connect() as connection:
            (only,) = strips.of_key(connection, registry, "24h", "poll", "a").shape().items

        assert [(each.outcome, each.count) for each in only.cells][:2] == [("succeeded", 12), ("dead", 1)]
        assert only.cells[2].outcome == "not on record"

    def test_a_key_without_a_schedule_is_refused(self, database, registry):
        with database.connect() as connection, pytest.raises(ScheduleError, match="no schedule for the key 'a'"):
            strips.of_key(connection, registry, "24h", "poll", "a")


def test_trouble_comes_first(ledger, registry, board, whole):
    account(ledger, registry, hourly, frequent)
    add(ledger, "frequent", whole - HOUR)
    add(ledger, "hourly", whole - HOUR, "dead", reason="retries")

    assert [each.standing for each in board().items] == ["failing", "in time", "no slot yet"]


def test_a_viewer_of_some_jobs_sees_their_strips(board):
    assert [each.job for each in board(view=View({"daily"})).items] == ["daily"]


@pytest.mark.parametrize(("limits", "number"), [({}, 1), ({"queues": ["billing"]}, 0)])
def test_releases_are_shown_to_people_without_limits(registry, client, database, limits, number):
    with database.begin() as connection:
        releases.record(connection, releases.of(registry))
    headers = bearer(database, "viewer", **limits)

    found = client.get("/api/v1/schedules/strips", headers=headers).json()
    pages = [client.get(path, headers={**headers, "Accept": "text/html"}) for path in PAGES]

    assert len(found["releases"]) == number
    assert [re.search('class="rel" d="M', page.text) is not None for page in pages] == [bool(number)] * len(PAGES)


def test_the_number_of_queries_does_not_grow(database, registry, board):
    asked = []
    event.listen(database, "before_cursor_execute", lambda *args: asked.append(args[2]))
    board()

    assert len(asked) <= 12


def test_runs_that_succeed_in_time_are_not_in_the_index(ledger, board, whole):
    add(ledger, "hourly", whole - HOUR)
    add(ledger, "frequent", whole - HOUR, late=31 * timedelta(seconds=1))

    entries = "SELECT reltuples FROM pg_class WHERE relname = 'rota_runs_notable'"
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE rota_runs"))

    assert ledger.value(entries) == 1


def test_the_api_tells_the_same(ledger, registry, client, database, whole):
    add(ledger, "hourly", whole - HOUR, "dead", reason="retries")
    headers = bearer(database, "viewer")

    found = client.get("/api/v1/schedules/strips", params={"job": "hourly"}, headers=headers).json()

    assert [each["job"] for each in found["items"]] == ["hourly"]
    assert [c["reason"] for c in found["items"][0]["cells"] if c["outcome"] == "dead"] == ["retries"]
    assert datetime.fromisoformat(found["now"]).tzinfo == UTC
    refused = client.get("/api/v1/schedules/strips", params={"job": "poll", "key": "x"}, headers=headers)
    assert refused.status_code == 409
