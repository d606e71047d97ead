"""``rota schedules``: lists and changes schedules made at run time."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from core import Keyed, KeySchedule, every, job, sync_schedules
from core.cli import main
from core.testing import registry_of


@job("poll", queue="mail", keyed=Keyed(default=every(seconds=60)))
def poll(run, account: int = 0):
    """Poll a mailbox."""


@job("clear", queue="mail")
def clear(run):
    """Do nothing. This job has no schedules."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(poll, clear)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def listed(rota):
    return lambda *words: {each["key"]: each for each in json.loads(rota("schedules", *words, "--json").stdout)}


@pytest.fixture
def three(database):
    """Make schedules for three keys, with arguments."""
    with Session(database) as session, session.begin():
        wanted = [KeySchedule(key, timedelta(minutes=1), args={"account": 7}) for key in ("a", "b", "c")]
        sync_schedules(session, "poll", wanted)


def test_a_schedule_is_added_listed_changed_and_removed(rota, listed):
    assert rota("schedules").stdout == "no schedules\n"

    assert rota("schedules", "add", "poll", "42", "--every", "5m", "--by", "ann").stdout == (
        "scheduled poll for the key 42\n"
    )
    assert rota("schedules", "add", "poll", "42", "--every", "5m").stdout == "nothing to change: poll for the key 42\n"
    found = listed()["42"]
    assert (found["job"], found["plugin"], found["schedule"], found["changed_by"]) == (
        "poll", "tests", "every 5m", "ann"
    )  # fmt: skip
    assert found["next_at"] is not None
    assert not found["is_orphaned"]

    rota("schedules", "add", "poll", "42", "--cron", "0 7 * * mon", "--tz", "Europe/London", "--spread", "10m")
    assert listed()["42"]["schedule"] == "0 7 * * mon Europe/London"

    assert rota("schedules", "remove", "poll", "42", "--yes").exit_code == 0
    assert listed() == {}


def test_a_change_by_hand_leaves_the_arguments(rota, three, ledger):
    rota("schedules", "add", "poll", "a", "--every", "5m")

    assert ledger.value("SELECT args FROM rota_key_schedules WHERE key = 'a'") == {"account": 7}


def test_with_now_a_run_is_requested_too(rota, ledger):
    rota("schedules", "add", "poll", "42", "--now", "--priority", "3")

    (run,) = ledger.runs("poll")
    assert (run.key, run.slot, run.priority) == ("42", None, 3)


def test_a_key_is_paused_with_its_reason_and_resumed(rota, listed, three):
    done = rota("schedules", "pause", "poll", "b", "--reason", "wrong password", "--for", "2h", "--by", "ann")

    assert done.stdout.startswith("paused poll for the key b until ")
    assert listed("--paused").keys() == {"b"}
    assert listed()["b"]["pause_reason"] == "wrong password"
    assert listed()["b"]["next_at"] is None
    assert "paused by ann until" in rota("schedules", "--key", "b").stdout

    assert rota("schedules", "resume", "poll", "b").exit_code == 0
    assert listed("--paused") == {}
    again = rota("schedules", "resume", "poll", "b")
    assert (again.exit_code, "is not paused" in again.stderr) == (1, True)


def test_those_that_back_off_are_listed(rota, listed, three, ledger):
    ledger.do("UPDATE rota_key_schedules SET stretch = 3, failures = 5 WHERE key = 'c'")

    assert listed("--backing-off").keys() == {"c"}
    assert "backs off: one slot in 8" in rota("schedules", "--backing-off").stdout

    assert rota("schedules", "resume", "poll", "c").exit_code == 0
    assert listed("--backing-off") == {}


def test_a_cron_key_that_backs_off_tells_in_which_time_one_slot_comes_due(rota, ledger):
    rota("schedules", "add", "poll", "42", "--cron", "*/5 * * * *")
    ledger.do("UPDATE rota_key_schedules SET stretch = 2, failures = 4")

    assert "backs off: the first slot in each 20 min" in rota("schedules").stdout


def test_a_page_begins_after_a_key(listed, three):
    assert list(listed("--job", "poll", "--after", "a", "--limit", "1")) == ["b"]


def test_the_audit_has_each_change_without_the_key(rota, three, ledger):
    rota("schedules", "add", "poll", "secret-key")
    rota("schedules", "pause", "poll", "a")
    rota("schedules", "resume", "poll", "a")
    rota("schedules", "remove", "poll", "a", "--yes")

    found = ledger.rows("SELECT action, target, details FROM rota_audit ORDER BY id")
    assert [(each.action, each.target) for each in found] == [
        ("schedules add", "poll"), ("schedules pause", "poll"), ("schedules resume", "poll"),
        ("schedules remove", "poll"),
    ]  # fmt: skip
    assert "secret-key" not in str(found)


def test_schedules_of_a_job_that_nobody_has_are_listed_and_cleaned_on_demand(
    rota, listed, three, use_jobs, start_process, ledger
):
    use_jobs(clear)
    start_process(jobs=[clear])

    assert set(listed("--orphaned")) == {"a", "b", "c"}
    assert listed("--job", "poll")["a"]["next_at"] is None
    assert rota("schedules", "clean", "poll", "--yes").stdout == "poll: 3\nremoved 3\n"
    assert rota("schedules", "clean").stdout == "no orphaned schedules\n"
    assert ledger.value("SELECT count(*) FROM rota_key_schedule_log WHERE action = 'removed'") == 3


def test_schedules_of_a_job_that_a_live_process_has_are_not_cleaned(rota, three, use_jobs, start_process):
    use_jobs(clear)
    start_process(jobs=list(registry_of(poll)))

    refused = rota("schedules", "clean", "poll", "--yes")

    assert (refused.exit_code, "a live process has it" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["add", "clear", "42"], 1, "takes no schedules made at run time"),
        (["add", "poll", "42", "--every", "1s"], 1, "the interval 0:00:01 must be 0:00:10 to 1 day"),
        (["add", "poll", "42", "--every", "soon"], 2, "is not a span of time"),
        (["add", "poll", "42", "--cron", "61 * * * *"], 1, "61"),
        (["add", "poll", "42", "--every", "60s", "--cron", "* * * * *"], 1, "contradict each other"),
        (["add", "poll", "42", "--every", "60s", "--tz", "Europe/London"], 2, "--tz needs --cron"),
        (["remove", "poll", "42", "--yes"], 1, "has no schedule for the key '42'"),
        (["pause", "poll", "42"], 1, "has no schedule for the key '42'"),
        (["pause", "poll", "42", "--for", "1h", "--until", "18:00"], 2, "contradict each other"),
        (["--job", "pol"], 1, "did you mean 'poll'"),
        (["ad"], 2, "did you mean 'add'"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(rota, words, status, said):
    done = rota("schedules", *words)

    assert (done.exit_code, said in done.stderr) == (status, True), done.stderr


def test_the_list_of_jobs_tells_that_keys_have_schedules(rota):
    (line,) = [line for line in rota("jobs").stdout.splitlines() if line.startswith("poll")]

    assert "one for each key" in line


def test_totals_count_slots_with_runs_without_runs_and_with_deleted_runs(rota, three, ledger):
    ended = "INSERT INTO rota_runs (job, key, queue, state, slot, finished_at) SELECT 'poll', 'a', 'mail', :state, "
    series = " - number * interval '1 second' FROM generate_series(1, :count) AS number"
    for state, count in (("succeeded", 2), ("dead", 3), ("skipped", 1)):
        ledger.do(
            f"{ended} clock_timestamp(){series.replace('FROM', ', clock_timestamp() FROM')}", state=state, count=count
        )
    ledger.do(
        "INSERT INTO rota_success_counts (job, minute, runs, first_at, last_at, first_slot, last_slot) "
        "SELECT 'poll', date_trunc('minute', at), 40, at, at, at, at "
        "FROM (SELECT now() - interval '2 hours' AS at UNION ALL SELECT now() - interval '3 days') AS times"
    )
    ledger.do(
        "INSERT INTO rota_gaps (job, began_at, ended_at, reason, slots) VALUES ('poll', now(), now(), 'outage', 7)"
    )
    rota("schedules", "pause", "poll", "a")

    (found,) = json.loads(rota("schedules", "totals", "--json").stdout)

    assert (found["job"], found["schedules"], found["paused"], found["backing_off"]) == ("poll", 3, 1, 0)
    assert (found["succeeded"], found["dead"], found["skipped"], found["missed"]) == (42, 3, 1, 0)
    assert found["gaps"] == {"outage": 7}
    assert json.loads(rota("schedules", "totals", "--for", "1h", "--json").stdout)[0]["succeeded"] == 2
    assert "7 outage" in rota("schedules", "totals", "--job", "poll").stdout
    assert "unknown job 'pol'" in rota("schedules", "totals", "--job", "pol").stderr


def test_totals_without_schedules(rota):
    assert rota("schedules", "totals").stdout == "no schedules\n"
