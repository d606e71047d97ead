"""Measures schedules of 60 s made at run time, without workers: the dispatcher's pass, and ``sync_schedules``.

In addition to the elapsed time, it prints the CPU time of this process and of PostgreSQL, which depends less on other
load.

A pass accounts for all keys that are due in that second. The pass is also measured with the sending of the messages to
Redis.

python -m benchmarks.key_schedules [--schedules 100000] [--passes 60]
"""

import argparse
import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median

import psutil
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench
from core import Keyed, KeySchedule, every, job, sync_schedules
from core import database as databases
from core.dispatcher import sending
from core.dispatcher.key_slots import KeyAccountant
from core.ledger.releases import Fleet
from core.plugins import loading
from core.testing import registry_of
from core.transport.redis import RedisCarrier

MINUTE = timedelta(seconds=60)
POLL = job("bench-poll", queue="bench-poll", keyed=Keyed(default=every(seconds=60)))(lambda run: None)
#: The number of schedules, and the goal for the median pass, in milliseconds.
GOALS_MS = {100_000: 100, 10_000: 15}
SYNC_GOAL_SECONDS = 2


def timed(work: Callable[[], object]) -> float:
    """How long ``work`` takes, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_of(connection: Connection) -> float:
    """The CPU time of this process and of the connection's PostgreSQL process until now, in seconds."""
    server = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()).cpu_times()
    return time.process_time() + float(server.user + server.system)


def sync(made: Bench, wanted: list[KeySchedule]) -> tuple[float, float]:
    """How long ``sync_schedules`` takes with its commit, and its CPU time before the commit, in seconds."""
    cpu = 0.0

    def work() -> None:
        nonlocal cpu
        with Session(made.engine) as session, session.begin():
            began = cpu_of(session.connection())
            sync_schedules(session, "bench-poll", wanted, most_removed=1.0)
            cpu = cpu_of(session.connection()) - began

    return timed(work), cpu


def measure_sync(made: Bench, count: int) -> None:
    """All new; then 50 gone, 50 new and 100 changed."""
    wanted = [KeySchedule(f"account-{number}", MINUTE) for number in range(count)]
    first, cpu = sync(made, wanted)
    other = [KeySchedule(f"other-{number}", MINUTE) for number in range(50)]
    changed = [KeySchedule(each.key, 2 * MINUTE) for each in wanted[50:150]]
    others = [sync(made, [*changed, *wanted[150:], *other]), sync(made, wanted)]
    seconds, cpus = [found for found, _ in others], [found for _, found in others]
    print(
        f"sync of {count:,}: all new {first:.3g} s (CPU {cpu:.3g} s); "
        f"a few changed {meter.spread(seconds)} s (CPU {meter.spread(cpus)} s)"
    )
    goals.at_most(f"sync of {count:,} new schedules", first, SYNC_GOAL_SECONDS, "s")
    goals.at_most(f"sync of {count:,} schedules", median(seconds), SYNC_GOAL_SECONDS, "s")


def measure_passes(made: Bench, count: int, passes: int) -> None:
    """A pass each second, when all schedules have been seen."""
    accountant, carrier = KeyAccountant(loading.current()), RedisCarrier(made.broker.redis_queues)
    accounting, sent, runs = [], [], []
    with databases.dedicated(made.engine) as connection:
        seen = timed(lambda: [accountant.account(connection, Fleet()) for _ in range(2 + count // 20_000)])
        databases_vacuum(made)
        cpu = 0.0
        for _ in range(passes):
            time.sleep(1 - time.time() % 1)
            inserted: list[int] = []
            began = cpu_of(connection)
            accounting.append(timed(lambda found=inserted: found.append(accountant.account(connection, Fleet()))) * 1e3)  # type: ignore[misc]
            cpu += cpu_of(connection) - began
            sent.append(accounting[-1] + timed(lambda: sending.send_due(connection, {POLL.name}, carrier)) * 1e3)
            runs.append(inserted[0])
    print(f"{count:,} schedules of 60 s: {median(runs):g} runs a pass; seen for the first time in {seen:.3g} s")
    print(
        f"  pass {meter.spread(accounting)} ms (CPU {cpu / passes * 1e3:.3g} ms); with sending {meter.spread(sent)} ms"
    )
    if count in GOALS_MS:
        goals.at_most(f"pass with {count:,} schedules", median(accounting), GOALS_MS[count], "ms")


def databases_vacuum(made: Bench) -> None:
    """Do what autovacuum does after many rows have changed."""
    with databases.autocommit(made.engine) as connection:
        connection.exec_driver_sql("VACUUM ANALYZE rota_key_schedules")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--passes", type=int, default=60)
    options = parser.parse_args()
    for count in options.schedules:
        with bench() as made, loading.using(registry_of(POLL)):
            measure_sync(made, count)
            measure_passes(made, count, options.passes)


if __name__ == "__main__":
    main()
