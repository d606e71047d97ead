"""Two releases work on one database, as during a deploy: real processes of the previous release and of this release."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dramatiq.message import Message
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import cancel, database, enqueue, enqueue_many, schedule, unschedule
from core.ledger import cancels
from core.ledger.models import FINAL
from core.transport import redis as redis_broker
from core.transport.redis import RotaBroker
from tests.support import two_releases
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, pid_of

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

REQUEST = text("""
    INSERT INTO rota_runs (job, key, queue, exclusive, priority, expires_at)
    SELECT :job, key, 'mixed', :exclusive, :priority, clock_timestamp() + make_interval(secs => :expires)
    FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS asked (key, number) ORDER BY number RETURNING id
""")
LIVE = "SELECT * FROM rota_runs WHERE state IN ('queued', 'retrying', 'running') AND slot IS NULL"
SLOTS = """
    SELECT slot, state, reason, (SELECT count(*) FROM effects WHERE run_id = run.id) AS effects
    FROM rota_runs AS run WHERE job = :job ORDER BY slot
"""
SLOTS_OF_KEY = SLOTS.replace("job = :job", "job = :job AND key = :key")
SUCCEEDED_SLOTS = """
    SELECT slot FROM rota_runs WHERE job = :job AND key = :key AND state = 'succeeded' AND slot > :after
"""
WORKER = "SELECT worker AS name FROM rota_runs WHERE id = :id AND attempt > 0"
SPANS = "SELECT started_at, finished_at FROM rota_runs WHERE job = :job"
UNFINISHED = """
    SELECT id, job, key, slot, state, reason, attempt, worker, sent_at, due_at FROM rota_runs
    WHERE state NOT IN ('succeeded', 'skipped')
"""
OVERLAPS = """
    SELECT one.id, other.id FROM rota_runs AS one JOIN rota_runs AS other
      ON other.job = one.job AND other.key = one.key AND other.id <> one.id
    WHERE one.job = :job AND one.started_at < other.started_at AND other.started_at < one.finished_at
      AND 'succeeded' = ALL (ARRAY[one.state, other.state])
"""
CUSTOMERS = ("ann", "bob", "cyd")


class Mixed(Fleet):
    """The processes of this release."""

    tables = two_releases.EFFECTS

    def install(self) -> None:
        """Write the plugin."""
        two_releases.install(self.folder / "site")

    def ask(
        self, job: str, *keys: str, exclusive: bool = False, priority: int = 0, expires: float | None = None
    ) -> set[int]:
        """Request a run for each of ``keys``. Return the runs."""
        asked = {"job": job, "keys": list(keys), "exclusive": exclusive, "priority": priority, "expires": expires}
        with self.engine.begin() as connection:
            run_ids = set(connection.execute(REQUEST, asked).scalars())
            connection.exec_driver_sql("NOTIFY rota_due")
        return run_ids

    def send(self, numbers: range) -> None:
        """Send messages of the fast lane."""
        broker = RotaBroker(redis_broker.connect(self.redis_url))
        for number in numbers:
            broker.enqueue(Message("mixed-fast", "fast", (), {"number": number}, {}))
        broker.close()

    def heard(self) -> set[int]:
        """Return the messages of the fast lane that were worked on."""
        return {int(number) for number in self.redis.lrange(two_releases.FAST, 0, -1)}

    def cancel(self, *run_ids: int) -> None:
        """Cancel runs, as ``rota cancel`` does."""
        with database.autocommit(self.engine) as connection:
            cancels.cancel(connection, run_ids, by="ann")

    def states(self, run_ids: set[int]) -> set[tuple[str, str | None]]:
        """Return the states and reasons of these runs."""
        rows = self.rows("SELECT state, reason FROM rota_runs WHERE id = ANY(:ids)", ids=list(run_ids))
        return {(row.state, row.reason) for row in rows}

    def wait_for_requests(self) -> None:
        """Wait until no request is waiting or running."""
        eventually(lambda: not self.rows(LIVE), every=0.2)


class Former(Mixed):
    """The processes of the previous release."""

    tables = "SELECT 1"

    def install(self) -> None:
        """Unpack the release, and write the plugin."""
        two_releases.unpack(self.cwd)
        super().install()


@pytest.fixture
def releases(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[tuple[Former, Mixed]]:
    """Yield the previous release and this release."""
    servers = {"postgres_url": postgres_url, "redis_url": redis_url}
    environ = {"ROTA_DISABLED_PLUGINS": two_releases.OTHERS, "ROTA_RESEND_SECONDS": "2"}
    with ExitStack() as stack:
        stack.callback(lambda: print((former.logs() + now.logs())[-8000:]))  # noqa: T201 — pytest shows it on a failure
        now = Mixed(tmp_path / "now", **servers, environ=environ)
        stack.callback(now.stop)
        former = Former(tmp_path / "former", **servers, environ=environ, cwd=tmp_path / "former" / "release")
        stack.callback(former.stop)
        yield former, now
        print(*now.rows(UNFINISHED), sep="\n")  # noqa: T201 — the same


def asked_of_each_kind(fleet: Mixed) -> dict[str, set[int]]:
    """Request runs of each kind."""
    return {
        "of one key": fleet.ask("invoice", *[""] * 50, exclusive=True),
        "of customers": fleet.ask("invoice", *CUSTOMERS * 10, exclusive=True),
        "retried": fleet.ask("flaky", *[""] * 10),
        "postponed": fleet.ask("postponed", *[""] * 10),
        "side by side": fleet.ask("nap", *[""] * 100),
        "together": fleet.ask("nothing", *[""] * 300),
        "urgent": fleet.ask("nap", *[""] * 20, priority=9),
    }


def assert_each_ran_once(fleet: Mixed, asked: dict[str, set[int]]) -> None:
    """Assert that no request was lost, executed twice or skipped."""
    assert {kind: fleet.states(run_ids) for kind, run_ids in asked.items()} == {
        kind: {("succeeded", None)} for kind in asked
    }
    effects = fleet.rows("SELECT run_id FROM effects WHERE slot IS NULL ORDER BY run_id")
    told = set().union(*(run_ids for kind, run_ids in asked.items() if kind != "together"))
    assert [row.run_id for row in effects] == sorted(told)
    assert fleet.rows(OVERLAPS, job="invoice") == []


def assert_slots(fleet: Mixed) -> None:
    """Assert that each slot has one row, and one effect if it succeeded, and no effect otherwise."""
    for job in ("tick", "sweep"):
        eventually(lambda job=job: steps(fleet.rows(SLOTS, job=job)) == {1.0})  # the dispatcher may be late
        slots = fleet.rows(SLOTS, job=job)
        assert [row.effects for row in slots] == [int(row.state == "succeeded") for row in slots]
        reasons = {row.reason for row in slots if row.state in ("skipped", "missed", "dead")}
        assert reasons <= ({"overlap", "retrying", "superseded"} if job == "sweep" else set()), job
    assert fleet.rows(OVERLAPS, job="sweep") == []


def steps(slots: list[Any]) -> set[float]:
    """Return the seconds between consecutive slots."""
    return {(later.slot - earlier.slot).total_seconds() for earlier, later in pairwise(slots)}


def test_both_work_and_die_beside_each_other_and_nothing_is_lost(releases):
    former, now = releases
    old, old_scheduler = former.together(former.worker, former.scheduler)
    (held,) = former.ask("hold", "")
    eventually(lambda: former.effects("hold") or former.states({held}) == {("running", None)})
    new = now.worker()

    now.cancel(held)
    asked = asked_of_each_kind(now)
    now.send(range(50))
    eventually(lambda: len(now.effects("nap")) > 20)
    now.kill(new)
    new = now.worker()
    now.wait_for_requests()
    assert now.heard() == set(range(50))
    assert_each_ran_once(now, asked)
    assert now.states({held}) == {("dead", "cancelled")}

    for kind, run_ids in asked_of_each_kind(now).items():
        asked[kind] |= run_ids
    now.send(range(50, 100))
    eventually(lambda: len(now.effects("nap")) > 140)
    former.kill(old)
    former.kill(old_scheduler)
    former.together(former.worker, former.scheduler)
    now.wait_for_requests()

    assert_each_ran_once(now, asked)
    eventually(lambda: now.heard() == set(range(100)))
    assert now.effects("hold") == []
    assert now.rows("SELECT * FROM rota_cancels") == []
    assert_slots(now)
    workers = {run.worker for run in now.runs("nap")}
    pids = {pid_of(row) for row in now.registered("worker")}
    assert len(workers) >= 2, "both releases have worked"
    assert len(pids) == 2


def test_limits_schedules_of_keys_and_cancels_hold_while_both_work(releases, use_jobs):
    former, now = releases
    old, new = former.worker(), now.worker()
    use_jobs(two_releases.limited, two_releases.polled, two_releases.invoice)
    with Session(now.engine) as session, session.begin():
        for key in CUSTOMERS:
            schedule(session, "polled", key=key, every=timedelta(seconds=1))
        limited = set(enqueue_many(session, "limited", [{}] * 8))
        *served, cancelled = [enqueue(session, "invoice", key="ann") for _ in range(6)]
    with Session(now.engine) as session, session.begin():
        cancel(session, cancelled)
    (held,) = now.ask("hold", "")
    (worker,) = eventually(lambda: now.rows(WORKER, id=held))

    now.cancel(held)
    is_old = pid_of(worker) in {pid_of(row) for row in now.registered("worker", old)}
    (former if is_old else now).kill(old if is_old else new)
    (former if is_old else now).worker()
    now.wait_for_requests()
    with Session(now.engine) as session, session.begin():
        assert unschedule(session, "polled", key="bob")
    unscheduled_at = now.rows("SELECT clock_timestamp() AS at")[0].at
    eventually(lambda: len(now.rows(SUCCEEDED_SLOTS, job="polled", key="cyd", after=unscheduled_at)) >= 2)

    assert now.states(limited | set(served)) == {("succeeded", None)}
    assert now.states({cancelled, held}) == {("dead", "cancelled")}
    assert now.effects("hold") == []
    assert sorted(effect.run_id for effect in now.effects("invoice")) == served
    assert max(beside(now.rows(SPANS, job="limited"))) <= 3
    assert now.rows(SUCCEEDED_SLOTS, job="polled", key="bob", after=unscheduled_at) == []
    for key in CUSTOMERS:
        slots = now.rows(SLOTS_OF_KEY, job="polled", key=key)
        assert steps(slots) == {1.0}
        assert [row.effects for row in slots if row.state in FINAL] == [
            int(row.state == "succeeded") for row in slots if row.state in FINAL
        ]


def beside(spans: list[Any]) -> list[int]:
    """For each run, return how many runs were at work when it began."""
    return [sum(other.started_at <= span.started_at < other.finished_at for other in spans) for span in spans]


@pytest.mark.parametrize("scheduler", ["former", "now"])
def test_the_scheduler_of_one_release_serves_the_workers_of_the_other(releases, scheduler):
    former, now = releases
    scheduling, working = (former, now) if scheduler == "former" else (now, former)
    schedules, worker = now.together(scheduling.scheduler, working.worker)
    eventually(lambda: len(now.effects("tick")) >= 3)

    scheduling.kill(schedules)
    asked = {"flaky": now.ask("flaky", "", ""), "nap": now.ask("nap", *[""] * 50, priority=5)}
    asked["invoice"] = now.ask("invoice", *CUSTOMERS * 2, exclusive=True)
    now.send(range(10))
    working.kill(worker)
    now.together(scheduling.scheduler, working.worker)
    now.wait_for_requests()
    eventually(lambda: now.heard() == set(range(10)))

    assert_each_ran_once(now, asked)
    assert_slots(now)


def test_a_worker_of_the_release_before_heeds_pauses_and_starts_nothing_after_its_deadline(releases):
    former, now = releases
    former.worker()
    assert now.start("rota", "pause", "nap").wait(30) == 0
    late = now.ask("nap", "", expires=1)
    waiting = now.ask("nap", "", "")
    eventually(lambda: now.rows("SELECT 1 FROM rota_runs WHERE expires_at < clock_timestamp()"))
    assert now.effects("nap") == []

    assert now.start("rota", "resume", "nap").wait(30) == 0
    eventually(lambda: now.states(waiting) == {("succeeded", None)})
    now.worker()
    eventually(lambda: now.states(late) == {("missed", "expired")})

    assert {effect.run_id for effect in now.effects("nap")} == waiting
