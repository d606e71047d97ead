"""Measures the costs of a run, a schedule and a process, from which the cost of many can be calculated; see
docs/scaling.md.

python -m benchmarks.scaling [--runs 4000] [--schedules 1000,10000,100000] [--processes 10,100,1000]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, text

from benchmarks import meter
from benchmarks.harness import Bench, bench, wait_for
from core import Run, database, every, job
from core.dispatcher import recovery
from core.dispatcher.accounting import Accountant
from core.dispatcher.loop import Dispatcher
from core.jobs.registry import Plugin, Registry
from core.ledger import due as relay
from core.ledger import releases, slots
from core.ledger.processes import LOCK_SPACE
from core.scheduling.misfires import miss_late
from core.transport.redis import RedisCarrier

PASSES = 7
SETTINGS: dict[str, Any] = {"every_seconds": 1, "resend_seconds": 5, "max_crashes": 3, "orphan_seconds": 60}

SILENT_PROCESSES = text("""
    INSERT INTO rota_processes (id, kind, name, queues, application, release, expires_at)
    SELECT number, 'worker', 'simulated:' || number, '{}', 'simulated:' || number, NULL, now() + interval '1 hour'
    FROM generate_series(1, :count) AS number
""")
HOLD_LOCKS = text("SELECT pg_advisory_lock(:space, number) FROM generate_series(1, :count) AS number")
RENEW_ALL = text("UPDATE rota_processes SET expires_at = expires_at WHERE id = :id")


def scalar(made: Bench, statement: str) -> int:
    """The one number that a query gives."""
    with made.engine.connect() as connection:
        return int(connection.exec_driver_sql(statement).scalar_one())


def cost_of_runs(made: Bench, count: int) -> None:
    """WAL, disk and Redis memory of a run, and the connections of a busy worker."""
    made.reset()
    wal, memory = scalar(made, "SELECT pg_current_wal_lsn() - '0/0'"), used_memory(made)
    made.queue_runs(count)
    queued, carried = scalar(made, "SELECT pg_current_wal_lsn() - '0/0'"), used_memory(made)
    ticks = made.ticks / "runs"
    with made.worker(ticks, "core.main", "bench-ledger"):
        wait_for(lambda: len(meter.ticks(ticks)) >= count, within=300)
        connections = scalar(made, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rota:%%'")
    done = scalar(made, "SELECT pg_current_wal_lsn() - '0/0'")
    with database.autocommit(made.engine) as connection:
        connection.exec_driver_sql("VACUUM rota_runs")
    size = scalar(made, "SELECT pg_total_relation_size('rota_runs')")
    print(f"a run, requested:  {(queued - wal) / count:8.0f} bytes of WAL, {(carried - memory) / count:6.0f} of Redis")
    print(f"a run, worked on:  {(done - queued) / count:8.0f} bytes of WAL")
    print(f"a run, finished:   {size / count:8.0f} bytes of disk, indexes included")
    print(f"a worker process:  {connections / 2:8.0f} connections to PostgreSQL, with 8 threads at work")


def used_memory(made: Bench) -> int:
    """Bytes that Redis uses."""
    return int(made.client.info("memory")["used_memory"])


def many_schedules(count: int) -> Registry:
    """A registry of that many jobs, each due once an hour."""

    def nothing(run: Run) -> None:
        """Nothing."""

    declared = tuple(job(f"scale-{number}", queue="scale", schedule=every(hours=1))(nothing) for number in range(count))
    return Registry((Plugin("scale", "scale", "1.0", declared),))


def cost_of_schedules(made: Bench, count: int) -> None:
    """Passes of the dispatcher: an idle one, one with something to do, and one in which all schedules are due."""
    made.reset()
    registry, carrier = many_schedules(count), RedisCarrier(made.broker.redis_queues)
    with database.dedicated(made.engine) as connection:
        accountant = Accountant(registry, slots.watermarks(connection))
        accountant.account(connection, carrier)
        dispatcher = Dispatcher(made.engine, registry, carrier, **SETTINGS)
        idle = median(lambda: dispatcher.pass_once(connection, accountant))
        active = median(lambda: one_pass(connection, registry, accountant, carrier))
        past = {
            name: slots.Watermark(mark.spec, mark.accounted_until - timedelta(hours=1))
            for name, mark in accountant.marks.items()
        }
        slots.account(connection, past)
        due = Accountant(registry, slots.watermarks(connection))
        began = time.perf_counter()
        due.account(connection, carrier)
        all_due = time.perf_counter() - began
    passes = f"idle pass {idle * 1000:6.1f} ms, active {active * 1000:6.1f} ms, all due at once {all_due:6.2f} s"
    print(f"{count:7} schedules:  {passes}")


def one_pass(connection: Connection, registry: Registry, accountant: Accountant, carrier: RedisCarrier) -> None:
    """What a pass of the dispatcher does when there may be something to do."""
    recovery.recover(connection, carrier, 3)
    releases.fleet(connection)
    accountant.account(connection, carrier)
    miss_late(connection, registry)
    relay.overdue_lanes(connection, 5)
    relay.is_any_due(connection)


def cost_of_processes(made: Bench, count: int) -> None:
    """Looking for dead processes among many, and one heartbeat."""
    made.reset()
    with database.dedicated(made.engine) as locks, database.dedicated(made.engine) as connection:
        connection.execute(SILENT_PROCESSES, {"count": count})
        locks.execute(HOLD_LOCKS, {"space": LOCK_SPACE, "count": count}).all()
        look = median(lambda: recovery.recover(connection, RedisCarrier(made.broker.redis_queues), 3))
        beat = median(lambda: connection.execute(RENEW_ALL, {"id": 1}))
    print(f"{count:7} processes:  looking for dead ones {look * 1000:8.1f} ms, a heartbeat {beat * 1000:6.2f} ms")


def median(work: Callable[[], object]) -> float:
    """Median seconds of several calls, after one that is not counted."""
    work()
    taken = []
    for _ in range(PASSES):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--schedules", default="1000,10000,100000")
    parser.add_argument("--processes", default="10,100,1000")
    options = parser.parse_args()
    with bench() as made:
        cost_of_runs(made, options.runs)
        for count in map(int, options.schedules.split(",")):
            cost_of_schedules(made, count)
        for count in map(int, options.processes.split(",")):
            cost_of_processes(made, count)


if __name__ == "__main__":
    main()
