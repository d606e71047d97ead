"""Fills a ledger with a month of runs as a busy service has them, for benchmarks that read it.

The runs are of 100 jobs, of which the busiest has a tenth of all runs. Of 10,000 runs, 100 are dead, 100 were skipped,
30 were missed and 2 were orphaned. Two thirds of the runs have a slot, the others have a key of one of 100,000
customers, and each two-hundredth has the same key, as the runs of a mailbox have. Each dead run has four attempts with
their tracebacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from core import database
from core.ledger.models import RunRow

JOBS = 100
DAYS = 30
CUSTOMERS = 100_000
#: A key that each two-hundredth run has.
MAILBOX = "mailbox-1"
#: The runs that are inserted by one statement.
STEP = 1_000_000
SETTINGS = "SET maintenance_work_mem = '512MB'; SET work_mem = '256MB'; SET synchronous_commit = off"
#: Pseudo-random numbers of 31 bits, the same at each filling: ``{salt}`` tells apart the numbers of one run.
DICE = "(hashint8extended(n, {salt}) & 2147483647)"

RUNS = f"""
    INSERT INTO rota_runs (job, key, queue, slot, state, reason, args, exclusive, attempt, failures, token, worker,
                           queued_at, due_at, started_at, finished_at, result, error)
    SELECT 'job-' || lpad(j::text, 2, '0'), key, 'queue-' || j % 5,
           CASE WHEN key = '' OR state IN ('skipped', 'missed') THEN at - interval '1 second' END, state,
           CASE state WHEN 'dead' THEN 'retries' WHEN 'skipped' THEN 'overlap' WHEN 'missed' THEN 'grace'
                      WHEN 'orphaned' THEN 'absent' END,
           jsonb_build_object('customer', customer, 'region', 'uk', 'rows', d3 % 500), true,
           CASE state WHEN 'succeeded' THEN 1 WHEN 'dead' THEN 4 ELSE 0 END, CASE state WHEN 'dead' THEN 4 ELSE 0 END,
           CASE WHEN has_begun THEN n END, CASE WHEN has_begun THEN 'host-' || d3 % 8 || ':4711' END,
           at - interval '1 second', at - interval '1 second', CASE WHEN has_begun THEN at END,
           at + (d2 % 3000) * interval '1 millisecond',
           CASE WHEN state = 'succeeded' AND d3 % 3 = 0 THEN jsonb_build_object('rows', d3 % 500) END,
           CASE state WHEN 'dead' THEN
                (ARRAY['OperationalError: connection to server at "10.0.0.7" failed: timeout expired',
                       'KeyError: ''customer''', 'TimeLimitExceeded: ran longer than 300 s',
                       'HTTPStatusError: 503 Service Unavailable'])[1 + d2 % 4] || ' (request ' || d3 || ')' END
    FROM generate_series({{first}}::bigint, {{last}}) AS n,
    LATERAL (SELECT {DICE.format(salt=1)} AS d1, {DICE.format(salt=2)} AS d2, {DICE.format(salt=3)} AS d3,
                    {DICE.format(salt=4)} AS d4) AS dice,
    LATERAL (SELECT CAST(floor({JOBS} * power(d1 / 2147483648.0, 2)) AS int) AS j, d4 % {CUSTOMERS} AS customer,
                    d2 % 10000 AS lot, now() + (n - {{count}}) * (interval '{DAYS} days' / {{count}}) AS at) AS which,
    LATERAL (SELECT CASE WHEN d3 % 200 = 0 THEN '{MAILBOX}' WHEN d3 % 3 = 0 THEN 'customer-' || customer
                         ELSE '' END AS key,
                    CASE WHEN lot < 100 THEN 'dead' WHEN lot < 200 THEN 'skipped' WHEN lot < 230 THEN 'missed'
                         WHEN lot < 232 THEN 'orphaned' ELSE 'succeeded' END AS state) AS told,
    LATERAL (SELECT state IN ('succeeded', 'dead') AS has_begun) AS begun
"""
#: The runs that wait and run now.
LIVE = """
    INSERT INTO rota_runs (job, queue, key, sent_at, state, attempt, due_at)
    SELECT 'job-' || lpad((n % 100)::text, 2, '0'), 'queue-' || n % 5, n::text, NULL, 'retrying', 1,
           now() + interval '30 days'
    FROM generate_series(1, 2000) AS n
"""
ATTEMPTS = """
    INSERT INTO rota_attempts (run_id, attempt, started_at, ended_at, worker, outcome, error, traceback, log)
    SELECT id, a, started_at - (4 - a) * interval '1 minute', finished_at - (4 - a) * interval '1 minute', worker,
           'failed', error, repeat('  File "jobs.py", line 1, in work' || chr(10), 20), repeat('a line of log ', 20)
    FROM rota_runs, generate_series(1, 4) AS a WHERE state = 'dead'
"""
#: What a filling leaves behind when it is complete.
MARK = "CREATE TABLE IF NOT EXISTS bench_filled (runs bigint)"


def fill(engine: Engine, count: int) -> None:
    """Fill an empty ledger with ``count`` runs, unless an earlier filling of this database has done so.

    Raises SystemExit if it was filled with another number.
    """
    with database.dedicated(engine) as connection:
        connection.exec_driver_sql(MARK)
        filled = connection.exec_driver_sql("SELECT runs FROM bench_filled").scalar()
        if filled == count:
            return
        if filled is not None:
            raise SystemExit(f"the ledger has {filled:,} runs already; give another folder, or --runs {filled}")
        connection.exec_driver_sql("TRUNCATE rota_runs, rota_attempts RESTART IDENTITY")  # of a filling cut short
        connection.exec_driver_sql(SETTINGS)
        with without_indexes(connection):
            for first in range(1, count + 1, STEP):
                last = min(first + STEP - 1, count)
                connection.exec_driver_sql(RUNS.format(first=first, last=last, count=count).replace("%", "%%"))
                print(f"filled {last:,} of {count:,} runs", flush=True)
        connection.exec_driver_sql(LIVE.replace("%", "%%"))
        connection.exec_driver_sql(ATTEMPTS)
        connection.exec_driver_sql("VACUUM (ANALYZE) rota_runs")
        connection.exec_driver_sql("VACUUM (ANALYZE) rota_attempts")
        connection.exec_driver_sql(f"INSERT INTO bench_filled VALUES ({count:d})")
        connection.exec_driver_sql("CHECKPOINT")


@contextmanager
def without_indexes(connection: Connection) -> Iterator[None]:
    """Drop the indexes of the runs, and make them again at the end, which takes less time than to keep them."""
    indexes = sorted(RunRow.__table__.indexes, key=lambda index: str(index.name))  # type: ignore[attr-defined]
    for index in indexes:
        index.drop(connection, checkfirst=True)
    yield
    for index in indexes:
        index.create(connection)
        print(f"made {index.name}", flush=True)
