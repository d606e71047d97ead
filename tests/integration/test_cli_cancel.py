"""``rota cancel``: selects runs by id or by filter, shows them, asks, and records the person and the reason."""

import json

import pytest
from click.testing import CliRunner

from core import database as databases
from core import every, job
from core.cli import main
from core.ledger import cancels, overdue


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    pass


@job("send-bill", queue="mail")
def send_bill(run):
    pass


@job("notify", ledger=False)
def notify(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day, send_bill, notify)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def running(database, ledger, process):
    """Return the lease of a running run."""
    return process.lease(database, ledger.request("send-bill"), "send-bill")


def test_a_waiting_run_ends_and_the_audit_has_who_and_why(rota, ledger):
    run_id = ledger.request("send-bill")

    done = rota("cancel", str(run_id), "--reason", "wrong list", "--by", "ann", "--yes")

    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "cancelled 1 run")
    row = ledger.run(run_id)
    assert (row.state, row.reason, row.error) == ("dead", "cancelled", "by ann: wrong list")
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "cli", "cancel", "send-bill")
    assert entry.details == {"runs": 1, "ids": [run_id], "why": "wrong list"}


def test_a_running_run_is_said_to_be_leaving(rota, ledger, running):
    done = rota("cancel", str(running.run_id), "--yes", "--by", "ann", "--reason", "wrong list")

    assert (done.exit_code, done.stdout.splitlines()[-2:]) == (
        0,
        ["cancelled 1 run", "1 still running: they commit nothing more, and each ends when its function has returned"],
    )
    assert ledger.run(running.run_id).state == "running"
    assert "is being cancelled by ann: wrong list" in rota("runs").stdout
    told = json.loads(rota("runs", "--json").stdout)[0]["cancelled"]
    assert (told["by"], told["reason"]) == ("ann", "wrong list")


def test_why_says_who_has_cancelled_it_while_it_runs_and_afterwards(rota, database, ledger, process):
    slot = "2026-11-23 03:00+00"
    lease = process.lease(database, ledger.request("close-day", slot=slot), "close-day")
    rota("cancel", str(lease.run_id), "--yes", "--by", "ann", "--reason", "wrong day")

    at_work = rota("why", "close-day", "--at", "2026-11-23T03:00").stdout
    assert "It was cancelled by ann at " in at_work
    assert "It cannot commit any more, and ends when its function has returned." in at_work

    with databases.autocommit(database) as connection:
        cancels.end(connection, lease)
    ended = " ".join(rota("why", "close-day", "--at", "2026-11-23T03:00").stdout.split())
    assert "it was cancelled by ann: wrong day; its state before was running" in ended


def test_runs_are_selected_by_a_filter(rota, ledger, running):
    other, retrying = ledger.request("close-day"), ledger.request("send-bill", state="retrying", reason="error")

    done = rota("cancel", "--job", "send-bill", "--state", "retrying", "--yes", "--json")

    told = json.loads(done.stdout)
    assert (told["matched"], told["cancelled"], told["leaving"]) == (1, 1, 0)
    assert [ledger.run(run_id).state for run_id in (other, retrying, running.run_id)] == ["queued", "dead", "running"]

    assert json.loads(rota("cancel", "--queue", "default", "--yes", "--json").stdout)["cancelled"] == 2
    assert ledger.run(other).reason == "cancelled"


def test_runs_are_selected_by_what_they_wait_for(rota, ledger):
    parked, other = ledger.request("send-bill", reason="limit"), ledger.request("send-bill")

    assert rota("cancel", "--waits-for", "limit", "--yes").exit_code == 0

    assert [ledger.run(run_id).state for run_id in (parked, other)] == ["dead", "queued"]


def test_a_preview_changes_nothing(rota, ledger):
    run_id = ledger.request("send-bill")

    done = rota("cancel", str(run_id), "--dry-run")

    assert done.stdout.splitlines()[-1] == "would cancel 1 run; nothing was changed"
    assert ledger.run(run_id).state == "queued"


def test_without_a_terminal_it_must_be_confirmed(rota, ledger):
    run_id = ledger.request("send-bill")

    done = rota("cancel", str(run_id))

    assert (done.exit_code, ledger.run(run_id).state) == (1, "queued")
    assert "Cancel this run?" in done.stderr


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("succeeded", None, "has the state succeeded, not queued, retrying or running"),
        ("dead", "cancelled", "has the state dead, not queued, retrying or running (cancelled)"),
    ],
)
def test_what_is_over_is_refused_with_its_state(rota, ledger, state, reason, said):
    over, fit = ledger.request("send-bill", state=state, reason=reason, finished_at="now"), ledger.request("send-bill")

    done = rota("cancel", str(over), str(fit), "4711", "--yes")

    assert done.exit_code == 1
    assert f"run {over} {said}" in done.stderr
    assert "run 4711 does not exist" in done.stderr
    assert ledger.run(fit).state == "queued"


def test_a_running_run_is_not_cancelled_again(rota, running):
    rota("cancel", str(running.run_id), "--yes", "--by", "ann")

    done = rota("cancel", str(running.run_id), "--yes", "--by", "bob")

    assert done.exit_code == 1
    assert f"run {running.run_id} was cancelled already, by ann at " in done.stderr


def test_a_job_of_the_fast_lane_is_refused(rota):
    done = rota("cancel", "--job", "notify", "--yes")

    assert (done.exit_code, done.stderr) == (
        1,
        "rota: job 'notify' is on the fast lane (ledger=False), which has no runs that can be cancelled\n",
    )


class TestNoFailure:
    """A cancelled run is dead, but does not count as a failure."""

    def test_a_retry_by_filter_leaves_it_out_unless_it_is_asked_for(self, rota, ledger, database, start_process):
        start_process(jobs=[send_bill], queues=["mail"])
        run_id = ledger.request("send-bill", queue="mail")
        rota("cancel", str(run_id), "--yes")

        assert rota("retry", "--job", "send-bill", "--yes").exit_code == 1
        assert ledger.run(run_id).state == "dead"
        assert rota("retry", "--reason", "cancelled", "--yes").exit_code == 0
        assert ledger.run(run_id).state == "retrying"

    @pytest.mark.parametrize("reason", ["cancelled", "dropped"])
    def test_its_slot_is_not_overdue(self, ledger, database, reason):
        ledger.do(
            "INSERT INTO rota_schedules (job, spec, accounted_until, succeeded_slot) "
            "VALUES ('close-day', 'every 1h', clock_timestamp(), '2026-11-23 00:00+00')"
        )
        for hour, why in ((1, reason), (2, reason), (3, "retries")):
            slot = f"2026-11-23 0{hour}:00+00"
            ledger.request("close-day", slot=slot, state="dead", reason=why, finished_at="now")

        with database.connect() as connection:
            (standing,) = overdue.look(connection, [close_day])

        assert (standing.dead, standing.overdue) == (1, 1)
