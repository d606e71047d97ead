"""Expires half of many coupons: compares the job's sweep, with claim, fence and checkpoints, with one UPDATE.

python -m benchmarks.coupons [--rows 2000000] [--repetitions 5] [--ends scattered|in-order]

With ``scattered``, the order in which coupons end differs from their order in the table. This is the harder case for a
sweep that takes rows in the order of their ends.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from benchmarks import meter
from core import database
from core.embedded import EmbeddedPostgres, temporary_folder
from core.plugins import loading
from core.schema import upgrade
from core.testing import Member, RunJob, registered
from core.worker.executor import Executor
from core.worker.membership import process_name
from plugins.expiry.jobs import check_expired_coupons

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KIB_IN_MIB = 1024
#: A prime: multiplied by it, row numbers come in an order that has nothing to do with the table's.
STRIDE = 7_368_787

SOURCE = """
    CREATE UNLOGGED TABLE source AS
    SELECT md5(n::text) AS code, 'user-' || mod(n, 100000) AS user_id,
           timestamptz '{now}' + (({order}) - {half}) * interval '1 second' AS ends_at
    FROM generate_series(1, {rows}) AS n
"""
ORDERS = {"in-order": "n", "scattered": f"1 + mod(n * {STRIDE}::bigint, {{rows}})"}
UPDATE = text(
    "UPDATE expiry_coupons SET state = 'expired', expired_at = :now WHERE state = 'active' AND ends_at <= :now"
)


@dataclass
class Locks:
    """For how long transactions held row locks: from the statement that took the first to the end of the commit."""

    began: float | None = None
    longest: float = 0.0
    batches: int = 0

    @contextmanager
    def watched(self, engine: Engine) -> Iterator[None]:
        event.listen(engine, "before_cursor_execute", self.before)
        event.listen(Session, "after_commit", self.after)
        yield
        event.remove(engine, "before_cursor_execute", self.before)
        event.remove(Session, "after_commit", self.after)

    def before(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if self.began is None and "SKIP LOCKED" in statement:
            self.began = time.perf_counter()

    def after(self, session: Session) -> None:
        if self.began is not None and not session.in_nested_transaction():
            self.longest = max(self.longest, time.perf_counter() - self.began)
            self.began = None
            self.batches += 1


def one_update(engine: Engine) -> int:
    """The best that one statement can do."""
    with engine.begin() as connection:
        return connection.execute(UPDATE, {"now": NOW}).rowcount


def sweep(run_job: RunJob) -> int:
    """The job, as a worker runs it."""
    run = run_job(check_expired_coupons, now=NOW)
    assert run.result is not None, run
    return int(run.result["expired"])


def fresh(engine: Engine) -> None:
    """The same table each time: nothing dead in it, everything written to disk."""
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql("TRUNCATE expiry_coupons RESTART IDENTITY")
        connection.exec_driver_sql("INSERT INTO expiry_coupons (code, user_id, ends_at) SELECT * FROM source")
        connection.exec_driver_sql("VACUUM ANALYZE expiry_coupons")
        connection.exec_driver_sql("CHECKPOINT")


def peak_mib() -> float:
    """The most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_IN_MIB


@contextmanager
def served(rows: int, ends: str) -> Iterator[Engine]:
    """PostgreSQL with Rota's tables, and the coupons to copy from."""
    with temporary_folder("rota-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder))
        postgres.start()
        engine = database.connect(postgres.url)
        try:
            list(upgrade.upgrade(engine, loading.current()))
            order = ORDERS[ends].format(rows=rows)
            with engine.begin() as connection:
                connection.exec_driver_sql(SOURCE.format(now=NOW.isoformat(), order=order, half=rows // 2, rows=rows))
            yield engine
        finally:
            database.dispose(engine)
            postgres.stop()


def timed(what: Any, *arguments: Any) -> tuple[float, int]:
    """How many seconds a call takes, and what it returns."""
    began = time.perf_counter()
    returned = what(*arguments)
    return time.perf_counter() - began, returned


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ends", choices=sorted(ORDERS), default="scattered")
    options = parser.parse_args()
    singles, sweeps, locks, growth = [], [], Locks(), []
    with served(options.rows, options.ends) as engine, registered(engine) as process_id:
        run_job = RunJob(Executor(engine, Member(process_id), process_name()))
        sweep(run_job)  # what is imported and prepared once
        for _ in range(options.repetitions):
            fresh(engine)
            seconds, single = timed(one_update, engine)
            singles.append(seconds)
            fresh(engine)
            before = peak_mib()
            with locks.watched(engine):
                seconds, swept = timed(sweep, run_job)
            sweeps.append(seconds)
            growth.append(peak_mib() - before)
            assert single == swept, f"the UPDATE expired {single}, the sweep {swept}"
    print(f"{single} of {options.rows} coupons, {options.ends}, {locks.batches // options.repetitions} batches")
    print(f"one UPDATE: {meter.spread(singles)} s")
    print(f"the sweep:  {meter.spread(sweeps)} s")
    print(f"longest time a batch held its locks: {locks.longest:.3f} s (goal: at most 1)")
    print(f"growth of the worker's peak memory: {max(growth):.1f} MiB")
    print(
        f"ratio sweep/UPDATE: {meter.spread([a / b for a, b in zip(sweeps, singles, strict=True)])} (goal: at most 1.5)"
    )


if __name__ == "__main__":
    main()
