"""I1 in real processes: a plugin that is uninstalled, disabled or broken has no job on any path. When it is back, its
jobs run again.

The plugin is a real wheel in an environment of the test's own, from which pip really uninstalls it.
"""

import re

import pytest
from sqlalchemy import text

from tests.support import leaving
from tests.support.eventually import eventually
from tests.support.service import Service
from tests.support.wheels import Environment

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

JOBS = {"leaving-tick", "leaving-shared", "leaving-own", "leaving-fast", "leaving-fast-own"}
LONGEST = 60

LEFT = """
    INSERT INTO rota_runs (job, queue, exclusive, state, reason, attempt, slot, due_at, sent_at, finished_at)
    SELECT job, queue, false, state, reason, attempt, CASE WHEN has_slot THEN due_at END, due_at,
           CASE WHEN is_sent THEN now() END, CASE state WHEN 'dead' THEN now() END
    FROM (VALUES
        ('leaving-shared', 'chaos', 'queued', NULL, 0, false, now(), false),
        ('leaving-shared', 'chaos', 'queued', NULL, 0, true, now() - interval '1 day', false),
        ('leaving-shared', 'chaos', 'retrying', 'error', 2, false, now(), false),
        ('leaving-shared', 'chaos', 'queued', NULL, 0, false, now() + interval '1 hour', false),
        ('leaving-shared', 'chaos', 'dead', 'retries', 4, false, now(), false),
        ('leaving-own', 'leaving', 'queued', NULL, 0, false, now(), true)
    ) AS left_behind (job, queue, state, reason, attempt, has_slot, due_at, is_sent)
    RETURNING id, job, queue, state, attempt, due_at > now() AS is_delayed
"""


class Leaving(Service):
    """A service whose plugin is removed and installed again."""

    def take_away(self, how: str) -> None:
        """Take the plugin away."""
        if how == "uninstalled":
            self.environment.uninstall(leaving.DISTRIBUTION)
        elif how == "disabled":
            self.environ["ROTA_DISABLED_PLUGINS"] = "leaving"
        else:
            self.environment.install(leaving.wheel(version="2.0", module=leaving.BROKEN))

    def bring_back(self) -> None:
        """Install the plugin as it was before."""
        self.environ.pop("ROTA_DISABLED_PLUGINS", None)
        self.environment.install(leaving.wheel())

    def leave_behind(self) -> list:
        """Leave runs of every kind in the ledger, and messages of every kind on queues."""
        with self.fleet.engine.begin() as connection:
            rows = connection.execute(text(LEFT)).all()
        (own,) = [row.id for row in rows if row.job == "leaving-own"]
        self.send("leaving-own", "leaving", run_id=own)
        self.send("leaving-fast", "chaos-fast")
        self.send("leaving-fast-own", "leaving")
        return rows


@pytest.fixture
def make_service(make_plain_service):
    """Yield a function that makes a service with the plugin installed."""

    def make(**options) -> Leaving:
        service = make_plain_service(Leaving, **options)
        service.environment.install(leaving.wheel())
        return service

    return make


@pytest.mark.parametrize("how", ["uninstalled", "disabled", "broken"])
def test_a_plugin_that_is_taken_away_is_on_no_path_and_comes_back(make_service, how):
    service = make_service()
    fleet = service.fleet
    service.start()
    eventually(lambda: fleet.effects("leaving-tick"), within=LONGEST)
    assert service.actors() >= JOBS
    service.stop()
    rows = service.leave_behind()

    service.take_away(how)
    before = len(fleet.rows("SELECT 1 FROM rota_runs WHERE job = 'leaving-tick'"))
    effects = len(fleet.rows("SELECT 1 FROM effects"))
    service.start()
    taken_away_at = fleet.now()
    eventually(lambda: service.states(rows) == ["orphaned"] * len(rows), within=LONGEST)
    eventually(lambda: (service.dead_letters("chaos-fast"), service.dead_letters("leaving")) == (1, 1), within=LONGEST)

    # the dispatcher: every run has ended without an attempt, with the reason
    for row, now in zip(rows, service.now(rows), strict=True):
        assert (now.reason, now.attempt, now.former_state) == (how, row.attempt, row.state)
    assert fleet.redis.llen("dramatiq:leaving") == 0
    # scheduler and workers: there is no actor, no slot and no effect
    assert not service.actors() & JOBS
    assert not service.known() & JOBS
    (touched,) = fleet.request("touch")
    eventually(lambda: fleet.effects("touch"), within=LONGEST)
    assert len(fleet.rows("SELECT 1 FROM rota_runs WHERE job = 'leaving-tick'")) == before
    assert len(fleet.rows("SELECT 1 FROM effects")) == effects + 1
    assert fleet.rows("SELECT 1 FROM rota_schedules WHERE job LIKE 'leaving%'") == []
    # the command line
    assert not service.jobs() & JOBS
    refused = service.rota("run", "leaving-own")
    assert (refused.returncode, "unknown job 'leaving-own'" in refused.stderr) == (1, True)
    assert {run["state"] for run in service.json("runs", "--job", "leaving-own")} == {"orphaned"}
    counts = service.json("orphans", "--plugin", "leaving")["counts"]
    assert sum(count["runs"] for count in counts) >= len(rows)
    states = {plugin["name"]: plugin["state"] for plugin in service.json("plugins")}
    assert states.get("leaving", "uninstalled") == how
    # metrics and health
    told = [line for line in service.metrics().splitlines() if re.search(r'task="leaving', line)]
    assert told
    assert all(line.startswith("scheduled_task_total{") and 'status="orphaned"' in line for line in told)
    names = {answer["name"]: answer["outcome"] for answer in service.json("check", "--live")["checks"]}
    assert "workers on leaving" not in names
    assert names.get("plugin leaving") == {"uninstalled": None, "disabled": "info", "broken": "wrong"}[how]

    service.stop()
    service.bring_back()
    back_at = fleet.now()
    service.start()
    adopted = service.rota("orphans", "adopt", "--plugin", "leaving", "--yes")
    assert adopted.returncode == 0, adopted.stderr
    due = [row.id for row in rows if row.state != "dead" and not row.is_delayed]
    done = "SELECT 1 FROM effects WHERE run_id = ANY(:ids)"
    eventually(lambda: len(fleet.rows(done, ids=due)) == len(due), within=LONGEST)
    assert sorted(service.states([row for row in rows if row.id not in due])) == ["dead", "queued"]
    eventually(lambda: [run for run in fleet.runs("leaving-tick") if run.slot > back_at], within=LONGEST)
    absent = "SELECT 1 FROM rota_runs WHERE job = 'leaving-tick' AND slot > :gone AND slot < :back"
    assert fleet.rows(absent, gone=taken_away_at, back=back_at) == []
    assert touched


def test_two_releases_side_by_side_do_each_other_no_harm(make_service, tmp_path):
    service = make_service()
    fleet = service.fleet
    new = Environment(tmp_path / "new")
    old_bin, fleet.bin = fleet.bin, new.bin
    fleet.worker()
    assert eventually(fleet.leader, within=LONGEST)
    fleet.bin = old_bin
    old = fleet.worker(ROTA_METRICS_PORT="0")

    shared = fleet.request("leaving-shared", 40)
    own = fleet.request("leaving-own", 10, queue="leaving")
    touched = fleet.request("touch", 40)
    for _ in range(10):
        service.send("leaving-fast", "chaos-fast")
    ids = [*shared, *own, *touched]
    done = "SELECT count(*) AS n FROM rota_runs WHERE id = ANY(:ids) AND state = 'succeeded'"
    eventually(lambda: fleet.rows(done, ids=ids)[0].n == len(ids), within=LONGEST)
    eventually(lambda: len(fleet.effects("leaving-fast")) == 10, within=LONGEST)

    pids = {row.pid for job in JOBS for row in fleet.effects(job)}
    assert {fleet.group_of(pid).pid for pid in pids} == {old.pid}
    assert fleet.rows("SELECT 1 FROM rota_runs WHERE state = 'orphaned'") == []
    assert service.dead_letters("chaos-fast") == 0

    fleet.terminate(old)
    late = fleet.request("leaving-shared", 3)
    orphaned = "SELECT count(*) AS n FROM rota_runs WHERE id = ANY(:ids) AND state = 'orphaned' AND attempt = 0"
    eventually(lambda: fleet.rows(orphaned, ids=late)[0].n == len(late), within=LONGEST)


def test_a_request_for_a_job_that_nobody_has_yet_waits_until_a_worker_has_it(make_service):
    """A delayed request waits as well. Meanwhile, runs of a job that an earlier release had are orphaned."""
    service = make_service()
    fleet = service.fleet
    service.take_away("uninstalled")
    had = """
        INSERT INTO rota_releases (fingerprint, jobs, first_seen_at, last_seen_at) VALUES
            ('old', '{"retired": {"plugin": "old", "queue": "chaos"}}', now() - interval '1 day', now())
    """
    with fleet.engine.begin() as connection:
        connection.execute(text(had))
    fleet.worker()
    assert eventually(fleet.leader, within=LONGEST)
    due, delayed = fleet.request("leaving-own", 2, queue="leaving")
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE rota_runs SET due_at = now() + interval '1 day' WHERE id = :id"), {"id": delayed}
        )
    fleet.request("retired")

    eventually(lambda: [run.state for run in fleet.runs("retired")] == ["orphaned"], within=LONGEST)
    assert [run.state for run in fleet.runs("leaving-own")] == ["queued", "queued"]
    told = {answer["name"]: answer["found"] for answer in service.json("check")["checks"]}
    assert told["runs of leaving-own"] == "runs wait; no release that ran here has had the job yet"

    service.bring_back()
    fleet.worker(ROTA_METRICS_PORT="0")
    state = "SELECT state FROM rota_runs WHERE id = :id"
    eventually(lambda: fleet.rows(state, id=due)[0].state == "succeeded", within=LONGEST)
    assert fleet.rows(state, id=delayed)[0].state == "queued"
