"""Measures how soon work continues after a process dies: a distribution for each kind of death, and bare Dramatiq and
Celery.

python -m benchmarks.recovery [--samples 30] [--only "worker killed"] [--peers-wait 120]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import meter
from benchmarks.peers import dying
from core import database
from core.embedded import EmbeddedPostgres, EmbeddedRedis, embedded_servers, temporary_folder
from core.plugins import loading
from core.schema import upgrade
from core.testing import create_database, drop_database
from tests.support.eventually import elapse, eventually
from tests.support.fleet import Fleet, fleet

#: A process that is not back after this long is printed as such.
LONGEST_SECONDS = 30.0
#: For how long the slots after a scheduler's death are watched.
WATCHED_SECONDS = 6.0
#: Between two deaths, so that the fleet is at rest.
REST_SECONDS = 1.0


@dataclass
class Bench:
    """Servers that may be killed."""

    folder: Path
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis

    @contextmanager
    def fleet(self, jobs: str, name: str) -> Iterator[Fleet]:
        """A fleet on a database of its own."""
        url = create_database(self.postgres.url, name)
        engine = database.connect(url)
        list(upgrade.upgrade(engine, loading.current()))
        database.dispose(engine)
        folder = self.folder / name
        folder.mkdir()
        with fleet(folder, url, self.redis.url, jobs=jobs) as made:
            made.redis.flushall()
            yield made
        drop_database(self.postgres.url, name)


Sample = float | None


def worker_killed(bench: Bench, samples: int) -> list[Sample]:
    """kill -9 of a worker in the middle of a run, until the run's next attempt has begun."""
    with bench.fleet("wait", "killed") as made:
        made.together(made.worker, made.worker)
        return [taken_up(made, made.kill) for _ in range(samples)]


def worker_stopped(bench: Bench, samples: int) -> list[Sample]:
    """The same with SIGSTOP."""
    with bench.fleet("wait", "stopped") as made:
        made.together(made.worker, made.worker)
        return [taken_up(made, made.pause) for _ in range(samples)]


def taken_up(made: Fleet, end: Callable[..., None]) -> Sample:
    """One sample; whatever was ended is replaced."""
    (run_id,) = made.request("wait")
    victim = made.group_of(made.next_start(within=LONGEST_SECONDS).pid)
    end(victim)
    ended_at = time.monotonic()
    made.next_start(within=LONGEST_SECONDS)
    after = time.monotonic() - ended_at
    made.go_on(run_id)
    if victim.poll() is None:
        made.kill(victim)
    made.worker()
    return after


def redis_gone(bench: Bench, samples: int) -> list[Sample]:
    """Redis killed, until a run that is requested just then has begun, Redis being away all the time."""
    with bench.fleet("touch", "redis_gone") as made:
        made.together(made.worker, made.worker)
        return [begun_without_redis(bench, made) for _ in range(samples)]


def begun_without_redis(bench: Bench, made: Fleet) -> Sample:
    """One sample; Redis is back afterwards, and has caught up."""
    bench.redis.kill()
    since = now()
    (run_id,) = made.request("touch")
    try:
        return eventually(partial(begun_after, made, run_id, since), within=LONGEST_SECONDS)
    except AssertionError:
        return None
    finally:
        bench.redis.start()
        eventually(partial(begun_after, made, run_id, since), within=LONGEST_SECONDS)
        elapse(REST_SECONDS)


def redis_back(bench: Bench, samples: int) -> list[Sample]:
    """Redis started again after 3 s, until a run that is requested just then has begun."""
    with bench.fleet("touch", "redis_back") as made:
        made.together(made.worker, made.worker)
        return [begun_again(made, bench.redis) for _ in range(samples)]


def postgres_restarted(bench: Bench, samples: int) -> list[Sample]:
    """PostgreSQL restarted, from when it accepts connections until a run that is requested just then has begun."""
    with bench.fleet("touch", "restarted") as made:
        made.together(made.worker, made.worker)
        return [begun_again(made, bench.postgres) for _ in range(samples)]


def begun_again(made: Fleet, server: EmbeddedPostgres | EmbeddedRedis) -> Sample:
    """One sample."""
    server.stop()
    elapse(3)
    server.start()
    since = now()
    made.engine.dispose()
    (run_id,) = made.request("touch")
    after = eventually(partial(begun_after, made, run_id, since), within=LONGEST_SECONDS)
    elapse(REST_SECONDS)
    return after


def begun_after(made: Fleet, run_id: int, since: datetime) -> float | None:
    """How long after that the run began, if it has; by PostgreSQL's clock, which is this machine's."""
    (run,) = made.rows("SELECT started_at FROM rota_runs WHERE id = :run", run=run_id)
    return (run.started_at - since).total_seconds() if run.started_at else None


def scheduler_killed(bench: Bench, samples: int) -> list[Sample]:
    """How late the latest slot of each second started in the seconds after the only scheduler was killed."""
    with bench.fleet("tick", "scheduler") as made:
        made.worker()
        return [latest_slot(made) for _ in range(samples)]


def latest_slot(made: Fleet) -> Sample:
    """One sample."""
    scheduler = made.scheduler()
    elapse(REST_SECONDS)
    made.kill(scheduler)
    killed_at = now()
    elapse(WATCHED_SECONDS)
    late = "SELECT max(started_at - slot) AS most FROM rota_runs WHERE slot > :killed AND slot < :until"
    (row,) = made.rows(late, killed=killed_at, until=now().replace(microsecond=0))
    return row.most.total_seconds() if row.most else None


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Case:
    """A way to die, and the goal."""

    measure: Callable[[Bench, int], list[Sample]]
    goal_seconds: float
    #: Of the samples that are asked for, one in so many is taken: some take long.
    one_in: int = 1


CASES = {
    "worker killed": Case(worker_killed, 3),
    "worker stopped (SIGSTOP)": Case(worker_stopped, 15, one_in=6),
    "scheduler killed, latest slot": Case(scheduler_killed, 2, one_in=3),
    "PostgreSQL restarted": Case(postgres_restarted, 2, one_in=2),
    "Redis gone": Case(redis_gone, 5, one_in=6),
    "Redis back": Case(redis_back, 5, one_in=3),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--only", choices=[*CASES, "peers"], help="one of them")
    parser.add_argument("--peers-wait", type=float, default=120, help="seconds until a peer is given up")
    parser.add_argument("--peers-tasks", type=int, default=6)
    options = parser.parse_args()
    with temporary_folder() as name, embedded_servers(Path(name) / "servers") as (postgres, server):
        bench = Bench(Path(name), postgres, server)
        print(f"{'':32} {'n':>4} {'p50':>9} {'p99':>9} {'most':>9} {'goal':>6}", flush=True)
        for case in [case for case in CASES if options.only in (None, case)]:
            found = CASES[case].measure(bench, max(options.samples // CASES[case].one_in, 1))
            print(line(case, found, LONGEST_SECONDS, CASES[case].goal_seconds), flush=True)
        for peer in dying.PEERS if options.only in (None, "peers") else []:
            found = dying.taken_up_after(peer, server.url, tasks=options.peers_tasks, wait_seconds=options.peers_wait)
            print(line(f"worker killed: {peer.name}", found, options.peers_wait), flush=True)


def line(name: str, samples: list[Sample], longest: float, goal: float | None = None) -> str:
    """A line of the table."""
    found = [float("inf") if sample is None else sample for sample in samples]
    values = [meter.percentile(found, 0.5), meter.percentile(found, 0.99), max(found)]
    shown = " ".join(f"{f'>{longest:.0f} s' if value == float('inf') else f'{value:.2f} s':>9}" for value in values)
    return f"{name:32} {len(found):>4} {shown} {f'{goal:.0f} s' if goal else '':>6}"


if __name__ == "__main__":
    main()
