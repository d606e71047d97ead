"""Measures whether a long history slows down the claim and success of runs, and a dispatcher's idle pass.

It uses two databases on one PostgreSQL: one with an empty ledger, and one with ``--runs`` finished runs of a month.

python -m benchmarks.history [--runs 10000000] [--messages 2000] [--repetitions 5]
"""

import argparse
import time
from collections.abc import Callable

from sqlalchemy import Engine, text

from benchmarks import meter
from benchmarks.harness import bench
from core import database
from core.ledger import claims, due, runs, slots
from core.plugins import loading
from core.schema import upgrade
from core.testing import create_database, registered

TOGETHER = 32
PASSES = 50

FILL = """
    INSERT INTO rota_runs (job, key, queue, state, exclusive, attempt, slot, token, worker, queued_at, due_at,
                           started_at, finished_at)
    SELECT 'job-' || mod(n, 50), '', 'default', 'succeeded', true, 1, at, n, 'host:1', at, at, at, at
    FROM generate_series({first}, {last}) AS n, LATERAL (
        SELECT now() - interval '30 days' + n * interval '30 days' / {count} AS at) AS instant
"""
INSERT = """
    INSERT INTO rota_runs (job, queue, exclusive, sent_at)
    SELECT 'work', 'default', false, clock_timestamp() FROM generate_series(1, :count) RETURNING id
"""
STEP = 500_000


def fill(engine: Engine, count: int) -> None:
    """Finished runs, vacuumed as autovacuum would."""
    with database.autocommit(engine) as connection:
        for first in range(1, count + 1, STEP):
            last = min(first + STEP - 1, count)
            connection.exec_driver_sql(FILL.format(first=first, last=last, count=count))
        connection.exec_driver_sql("VACUUM ANALYZE rota_runs")


def work(engine: Engine, process_id: int, count: int) -> float:
    """Runs a second, from queued to succeeded."""
    with database.autocommit(engine) as connection:
        ids = connection.execute(text(INSERT), {"count": count}).scalars().all()
        began = time.perf_counter()
        for start in range(0, count, TOGETHER):
            sent = [(run_id, "work", ()) for run_id in ids[start : start + TOGETHER]]
            claimed = claims.claim_many(connection, sent, process_id=process_id, worker="host:1")
            done = runs.succeed_many(connection, process_id, [(lease, None) for lease in claimed])
            assert len(done) == len(sent)
        return count / (time.perf_counter() - began)


def look(engine: Engine, _process_id: int, _count: int) -> float:
    """Idle passes a second: what a dispatcher asks of the runs when nothing is due."""
    jobs = loading.current()
    with database.autocommit(engine) as connection:
        began = time.perf_counter()
        for _ in range(PASSES):
            slots.miss(connection, jobs.scheduled(), 30)
            due.overdue_lanes(connection, 5)
            assert not due.due_lanes(connection, jobs.jobs)
        return PASSES / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    measured: dict[str, Callable[[Engine, int, int], float]] = {"runs": work, "idle passes": look}
    rates: dict[tuple[str, str], list[float]] = {}
    with bench() as made:
        full = database.connect(create_database(made.postgres_url, "full"))
        list(upgrade.upgrade(full, loading.current()))
        fill(full, options.runs)
        with registered(made.engine) as empty_id, registered(full) as full_id:
            for repetition in range(-1, options.repetitions):
                for name, engine, process_id in (("empty", made.engine, empty_id), ("full", full, full_id)):
                    for what, measure in measured.items():
                        value = measure(engine, process_id, options.messages)
                        if repetition >= 0:
                            rates.setdefault((what, name), []).append(value)
        database.dispose(full)
    for (what, name), values in sorted(rates.items()):
        print(f"{what:11} {name:5} {meter.spread(values)} a second")
    for what in measured:
        ratios = [full / empty for full, empty in zip(rates[what, "full"], rates[what, "empty"], strict=True)]
        print(f"ratio of {what}, {options.runs} finished/none: {meter.spread(ratios)} (goal 0.8)")


if __name__ == "__main__":
    main()
