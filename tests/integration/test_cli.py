"""Output and exit status of commands, with a real ledger."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from core import cron, every, job
from core.cli import main

ROTA = [sys.executable, "-c", "from core.cli import main; main(prog_name='rota')"]
#: An address without a server.
NOBODY_POSTGRES = "postgresql://rota:hunter2@127.0.0.1:1/rota"
NOBODY_REDIS = "redis://:hunter2@127.0.0.1:1/0"

JOB_FIELDS = {
    "name",
    "plugin",
    "queue",
    "schedule",
    "timezone",
    "next_slots",
    "max_retries",
    "retry_delay_seconds",
    "soft_limit_seconds",
    "hard_limit_seconds",
    "overlap",
    "priority",
    "misfire",
    "misfire_cap",
    "ledger",
    "pauses",
}
RUN_FIELDS = {
    "id",
    "job",
    "key",
    "slot",
    "state",
    "reason",
    "attempt",
    "queued_at",
    "started_at",
    "finished_at",
    "result",
    "error",
    "worker",
}


@job("close-day", queue="billing", schedule=cron("0 3 * * *", tz="Europe/London"), misfire_grace=timedelta(hours=1))
def close_day(run: Any, region: str = "uk") -> None:
    """Close the day."""


@job("tick", queue="billing", schedule=every(seconds=30))
def tick(run: Any) -> None:
    """Tick."""


@job("by-hand", queue="billing")
def by_hand(run: Any, count: int) -> None:
    """Run by hand."""


@job("fast", queue="billing", ledger=False)
def fast(run: Any) -> None:
    """On the fast lane."""


@pytest.fixture(autouse=True)
def jobs(use_jobs: Callable[..., Any]) -> None:
    use_jobs(close_day, tick, by_hand, fast)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Use a folder without a file of ``rota up``."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rota() -> Callable[..., Result]:
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


class TestJobs:
    def test_needs_no_setting_and_has_exactly_the_promised_fields(self, rota, monkeypatch):
        monkeypatch.delenv("DATABASE_URL", raising=False)

        found = json.loads(rota("jobs", "--json").stdout)

        assert all(set(job) == JOB_FIELDS for job in found)
        assert [job["name"] for job in found] == ["by-hand", "close-day", "fast", "tick"]

    def test_the_next_five_slots_are_in_the_schedules_zone(self, rota):
        found = {job["name"]: job for job in json.loads(rota("jobs", "--json").stdout)}

        slots = [datetime.fromisoformat(slot) for slot in found["close-day"]["next_slots"]]
        assert len(slots) == 5
        assert slots == sorted(set(slots))
        assert all(slot.astimezone(ZoneInfo("Europe/London")).hour == 3 for slot in slots)
        assert all(slot.utcoffset() is not None and slot.hour == 3 for slot in slots)
        assert found["close-day"]["schedule"] == "0 3 * * * Europe/London"
        assert found["by-hand"]["next_slots"] == []
        assert found["by-hand"]["schedule"] is None

    def test_prints_a_line_for_each_job_when_piped(self, rota):
        lines = rota("jobs").stdout.splitlines()

        assert len(lines) == 5
        assert lines[2].startswith("close-day")

    def test_loads_neither_dramatiq_nor_alembic(self):
        program = (
            "import sys\nfrom core.cli import main\n"
            "try: main(['jobs', '--json'], prog_name='rota')\n"
            "except SystemExit: pass\n"
            "sys.exit(str([m for m in ('dramatiq', 'periodiq', 'alembic') if m in sys.modules]))"
        )

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

        assert done.stderr.strip() == "[]"


class TestPlugins:
    def test_lists_what_is_loaded(self, rota):
        (plugin,) = json.loads(rota("plugins", "--json").stdout)

        assert set(plugin) == {"name", "distribution", "version", "state", "jobs", "migrations", "error"}
        assert (plugin["state"], plugin["jobs"]) == ("loaded", ["close-day", "tick", "by-hand", "fast"])
        assert plugin["migrations"] == []


class TestRuns:
    def test_lists_newest_first_with_exactly_the_promised_fields_and_progress(self, rota, ledger):
        first, second = ledger.request("tick"), ledger.request("tick", key="b")

        found = json.loads(rota("runs", "--json").stdout)

        assert [run["id"] for run in found] == [second, first]
        assert all(set(run) == RUN_FIELDS | {"progress", "cancelled"} for run in found)
        assert datetime.fromisoformat(found[0]["queued_at"]).utcoffset() is not None

    def test_filters_by_job_and_state_and_limits(self, rota, ledger):
        ledger.request("tick")
        wanted = [ledger.request("by-hand", key=key) for key in "abc"]

        found = json.loads(rota("runs", "--json", "--job", "by-hand", "--state", "queued", "--limit", "2").stdout)

        assert [run["id"] for run in found] == [wanted[2], wanted[1]]

    def test_knows_jobs_that_only_the_ledger_remembers(self, rota, ledger):
        ledger.request("long-gone")

        assert rota("runs", "--job", "long-gone").exit_code == 0
        refused = rota("runs", "--job", "long-gnoe")
        assert refused.exit_code == 1
        assert refused.stderr == "rota: unknown job 'long-gnoe'; did you mean 'long-gone'?\n"

    def test_an_unknown_state_is_wrong_usage(self, rota):
        assert rota("runs", "--state", "lost").exit_code == 2

    def test_ends_quietly_when_its_reader_does(self, ledger, tmp_path):
        for number in range(300):
            ledger.request("tick", key=str(number), args="{}")

        for words in (["runs", "--limit", "5000"], ["runs", "--limit", "5000", "--json"]):
            piped = subprocess.Popen([*ROTA, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            piped.stdout.close()
            assert piped.stderr.read() == b""
            assert piped.wait(30) in {0, 1}
            piped.stderr.close()


class TestRun:
    def test_inserts_a_run_and_prints_its_id(self, rota, ledger):
        done = rota("run", "by-hand", "--key", "k", "--args", '{"count": 3}')

        assert done.exit_code == 0
        run = ledger.run(int(done.stdout))
        assert (run.job, run.key, run.args, run.state, run.sent_at) == ("by-hand", "k", {"count": 3}, "queued", None)

    @pytest.mark.parametrize("bad", ["{", "[1]", "3", ""])
    def test_arguments_that_are_not_a_json_object_are_wrong_usage(self, rota, database, bad):
        assert rota("run", "by-hand", "--args", bad).exit_code == 2

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["by-hnad"], "unknown job 'by-hnad'; did you mean 'by-hand'?"),
            (["by-hand"], "job 'by-hand': count is missing"),
            (["by-hand", "--args", '{"count": "3"}'], "count: input should be a valid integer"),
            (["fast"], "job 'fast' is on the fast lane"),
        ],
    )
    def test_what_cannot_run_is_refused_in_a_line(self, rota, ledger, words, said):
        done = rota("run", *words)

        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stderr.startswith("rota: ")
        assert ledger.value("SELECT count(*) FROM rota_runs") == 0

    def test_a_timeout_needs_wait(self, rota):
        assert rota("run", "tick", "--timeout", "1").exit_code == 2

    def test_waiting_says_that_there_is_no_worker_and_gives_up_in_time(self, rota, database):
        done = rota("run", "tick", "--wait", "--timeout", "1.5")

        assert done.exit_code == 1
        assert "no worker is alive for queue 'billing'" in done.stderr
        assert "is queued after 1.5 s, and continues" in done.stderr

    @pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("dead", 1)])
    def test_waiting_answers_with_how_it_ended(self, rota, database, ledger, state, status):
        ledger.do("""
            CREATE FUNCTION finish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                NEW.finished_at := clock_timestamp(); NEW.started_at := clock_timestamp(); NEW.attempt := 1;
                NEW.reason := 'retries'; NEW.error := 'ValueError: no'; NEW.result := '{"done": 2}';
                RETURN NEW; END $$""")
        ledger.do("CREATE TRIGGER finish BEFORE INSERT ON rota_runs FOR EACH ROW EXECUTE FUNCTION finish()")
        ledger.do(f"ALTER TABLE rota_runs ALTER COLUMN state SET DEFAULT '{state}'")
        try:
            done = rota("run", "tick", "--wait")
        finally:
            ledger.do("ALTER TABLE rota_runs ALTER COLUMN state SET DEFAULT 'queued'")
            ledger.do("DROP FUNCTION finish CASCADE")

        assert done.exit_code == status
        assert ("done 2" if status == 0 else "is dead: retries: ValueError: no") in done.stderr


class TestWrongSurroundings:
    @pytest.mark.parametrize("words", [["runs"], ["db", "status"], ["run", "tick"], ["why", "tick", "--at", "03:00"]])
    def test_an_unreachable_database_is_told_in_a_line_without_its_password(self, rota, monkeypatch, words):
        monkeypatch.setenv("DATABASE_URL", NOBODY_POSTGRES)
        monkeypatch.setenv("REDIS_URL", NOBODY_REDIS)

        done = rota(*words)

        assert done.exit_code == 1
        assert done.stderr.startswith("rota: PostgreSQL cannot be reached")
        assert "hunter2" not in done.output
        assert done.stderr.count("\n") == 1

    def test_an_unmigrated_database_says_what_to_do(self, rota, database, ledger):
        ledger.do("ALTER TABLE rota_runs RENAME TO elsewhere")
        try:
            done = rota("runs")
        finally:
            ledger.do("ALTER TABLE elsewhere RENAME TO rota_runs")

        assert done.exit_code == 1
        assert done.stderr == "rota: the database is not migrated: run `rota db upgrade`\n"

    def test_a_statement_that_takes_too_long_is_not_taken_for_an_absent_server(self, rota, database, monkeypatch):
        from core.cli import environment

        monkeypatch.setattr(environment.ledger.__wrapped__, "__kwdefaults__", {"statement_timeout_seconds": 0.2})
        with database.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE rota_runs")
            done = rota("runs")

        assert done.exit_code == 1
        assert done.stderr == "rota: PostgreSQL refused: canceling statement due to statement timeout\n"

    def test_missing_settings_are_all_named(self, rota, monkeypatch):
        monkeypatch.delenv("DATABASE_URL", raising=False)
        monkeypatch.delenv("REDIS_URL", raising=False)

        done = rota("runs")

        assert done.exit_code == 1
        assert "DATABASE_URL is not set" in done.stderr
        assert "REDIS_URL is not set" in done.stderr

    def test_finds_what_rota_up_left_in_this_folder(self, rota, database, tmp_path, monkeypatch):
        write_env(tmp_path, os.environ["DATABASE_URL"], os.environ["REDIS_URL"])
        monkeypatch.delenv("DATABASE_URL")
        monkeypatch.delenv("REDIS_URL")

        assert rota("runs").exit_code == 0
        assert "those of .rota/env" in rota("check").stdout

    def test_does_not_mix_that_with_other_urls(self, rota, database, tmp_path, monkeypatch):
        write_env(tmp_path, NOBODY_POSTGRES, NOBODY_REDIS)
        monkeypatch.delenv("REDIS_URL")

        done = rota("runs")

        assert "REDIS_URL is not set" in done.stderr

    def test_trusts_no_such_file_that_others_could_write(self, rota, database, tmp_path, monkeypatch):
        write_env(tmp_path, os.environ["DATABASE_URL"], os.environ["REDIS_URL"]).chmod(0o666)
        monkeypatch.delenv("DATABASE_URL")
        monkeypatch.delenv("REDIS_URL")

        assert "DATABASE_URL is not set" in rota("runs").stderr


def write_env(folder, database_url, redis_url):
    """Write the file that ``rota up`` writes."""
    from core.cli.environment import write_env

    (folder / ".rota").mkdir()
    return write_env(folder / ".rota", {"DATABASE_URL": database_url, "REDIS_URL": redis_url})


class TestCheck:
    def test_all_is_well_without_processes_unless_they_are_asked_for(self, rota, database):
        assert rota("check").exit_code == 0

        live = rota("check", "--live")
        assert live.exit_code == 1
        assert "no  workers on billing: 0 alive" in live.stdout
        assert "no  scheduler: 0 alive" in live.stdout

    def test_a_setting_that_a_plugin_left_behind_is_told_and_nothing_is_wrong(self, rota, database, monkeypatch):
        monkeypatch.setenv("ROTA_INVOICES_TOKEN", "hunter2")

        done = rota("check")

        assert done.exit_code == 0
        assert "--  setting ROTA_INVOICES_TOKEN: is not a setting" in done.stdout
        assert "hunter2" not in done.output

    def test_json_says_what_is_wrong_and_what_to_do(self, rota, database, monkeypatch):
        monkeypatch.setenv("REDIS_URL", NOBODY_REDIS)

        done = rota("check", "--json")

        answer = json.loads(done.stdout)
        (wrong,) = [check for check in answer["checks"] if check["outcome"] == "wrong"]
        assert (done.exit_code, answer["ok"], wrong["name"]) == (1, False, "Redis")
        assert wrong["advice"]
        assert "hunter2" not in done.output

    def test_goes_on_after_an_unreachable_database(self, rota, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", NOBODY_POSTGRES)
        monkeypatch.setenv("REDIS_URL", NOBODY_REDIS)

        done = rota("check")

        assert done.exit_code == 1
        assert "no  PostgreSQL: " in done.stdout
        assert "no  Redis: " in done.stdout
        assert "hunter2" not in done.output

    def test_a_redis_that_takes_no_writes_is_wrong(self, rota, database, redis_url):
        import redis

        with redis.Redis.from_url(redis_url) as client:
            client.config_set("maxmemory", "1")
            try:
                done = rota("check")
            finally:
                client.config_set("maxmemory", "0")

        assert done.exit_code == 1
        assert "Redis is full" in done.stdout

    def test_a_health_check_asks_for_a_process_on_this_host(self, rota, process):
        done = rota("check", "--here", "worker")

        assert done.exit_code == 1  # the only process is on the host "test"
        assert "no  worker here" in done.stdout


class TestDb:
    def test_status_and_upgrade_agree_on_a_current_database(self, rota, database, use_jobs):
        assert rota("db", "status").exit_code == 0
        assert rota("db", "upgrade").exit_code == 0


LONDON = ZoneInfo("Europe/London")
#: Three o'clock in London on a day in winter.
THREE = datetime(2026, 1, 15, 3, tzinfo=UTC)


class TestWhy:
    def test_a_success_is_told_in_sentences_with_exit_status_0(self, rota, ledger):
        attempt = {"attempt": 1, "started_at": THREE, "finished_at": THREE + timedelta(seconds=9)}
        ledger.request("close-day", slot=THREE, state="succeeded", queued_at=THREE, worker="host:7", **attempt)

        done = rota("why", "close-day", "--at", "2026-01-15T03:00")

        assert done.exit_code == 0
        assert "for the slot 2026-01-15 03:00:00 GMT succeeded in 9.00 s on host:7.\n" in done.stdout

    def test_a_time_of_day_is_its_newest_occurrence_in_the_jobs_zone(self, rota, database):
        done = rota("why", "close-day", "--at", "03:00", "--json")

        at = datetime.fromisoformat(json.loads(done.stdout)["at"])
        assert at.astimezone(LONDON).hour == 3
        assert timedelta(0) <= datetime.now(UTC) - at < timedelta(days=1, hours=2)

    @pytest.mark.parametrize("bad", ["noon", "25:00", "2026-13-01", ""])
    def test_what_is_no_time_is_wrong_usage(self, rota, database, bad):
        assert rota("why", "close-day", "--at", bad).exit_code == 2

    def test_an_unknown_job_is_refused(self, rota, database):
        done = rota("why", "close-dya", "--at", "03:00")

        assert (done.exit_code, done.stderr) == (1, "rota: unknown job 'close-dya'; did you mean 'close-day'?\n")

    def test_json_has_the_sentences_and_the_run(self, rota, ledger):
        run_id = ledger.request("close-day", slot=THREE, state="missed", reason="grace", finished_at=THREE)

        answer = json.loads(rota("why", "close-day", "--at", "2026-01-15T03:00:00Z", "--json").stdout)

        assert [run["id"] for run in answer["runs"]] == [run_id]
        assert answer["succeeded"] is False
        assert answer["answer"]
