"""Taking turns: from the end of a run to the start of the request of its key that waited for it.

For comparison, from the request of a run that waits for no other to its start: it is inserted, sent and claimed in the
same way, but not parked and woken. Both kinds alternate, on the same workers.

python -m benchmarks.turns [--samples 100]
"""

import argparse
from datetime import timedelta

from sqlalchemy import text

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench, wait_for
from core import database
from core.ledger.carrier import OutgoingRun
from core.ledger.runs import request
from core.transport.redis import RedisCarrier

JOB = "bench-turn"
PLUGIN = '''\
import time

from core import hookimpl, job


@job("bench-turn", queue="bench-turn", overlap="wait")
def turn(run) -> None:
    """Long enough that the next request of the key is parked meanwhile."""
    time.sleep(0.1)


@hookimpl
def register_jobs():
    return [turn]
'''
#: Milliseconds from the end of the run before, or from the request, to the start.
GAPS = text("""
    SELECT 1000 * extract(epoch FROM
        started_at - coalesce(lag(finished_at) OVER (PARTITION BY key ORDER BY id), queued_at))
    FROM rota_runs WHERE job = 'bench-turn' ORDER BY id
""")
STARTED = text("SELECT count(*) FROM rota_runs WHERE job = 'bench-turn' AND state <> 'queued'")
ENDED = text("SELECT count(*) FROM rota_runs WHERE job = 'bench-turn' AND state = 'succeeded'")
#: In milliseconds, at the median.
GOAL = 20.0


def install(made: Bench) -> None:
    """Give the workers the job."""
    info = made.folder / "site" / "turns-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: turns\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nturns = turns_plugin\n")
    (made.folder / "site" / "turns_plugin.py").write_text(PLUGIN)


def send(made: Bench, key: str) -> None:
    """Request a run of ``key``, and send its message."""
    with database.autocommit(made.engine) as connection:
        run_id = request(
            connection, JOB, key=key, queue=JOB, args="{}", exclusive=True, delay=timedelta(0), carried=True
        )
    RedisCarrier(made.broker.redis_queues).send([OutgoingRun(run_id, JOB, JOB)])


def count(made: Bench, statement: object) -> int:
    """The number that a query returns."""
    with database.autocommit(made.engine) as connection:
        return int(connection.execute(statement).scalar_one())  # type: ignore[call-overload]


def pair(made: Bench, number: int) -> None:
    """Request two runs of one key, the second while the first is at work."""
    send(made, f"key-{number}")
    wait_for(lambda: count(made, STARTED) == 2 * number + 1, within=10)
    send(made, f"key-{number}")
    wait_for(lambda: count(made, ENDED) == 2 * (number + 1), within=10)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    with bench() as made:
        install(made)
        with made.worker(made.ticks / "turns", "core.main", JOB):
            for number in range(options.samples + 1):
                pair(made, number)
        with database.autocommit(made.engine) as connection:
            gaps = [float(gap) for gap in connection.execute(GAPS).scalars()][2:]  # the first pair warms up
    found = {"after another run": gaps[1::2], "without waiting": gaps[::2]}
    for kind, values in found.items():
        p50, p99 = meter.percentile(values, 0.5), meter.percentile(values, 0.99)
        print(f"{kind:18} p50 {p50:7.1f} ms   p99 {p99:7.1f} ms")
    waited, alone = (meter.percentile(values, 0.5) for values in found.values())
    print(f"ratio after another run/without waiting, p50: {waited / alone:.1f}")
    goals.at_most("start of a request behind another, p50", waited, GOAL, "ms")


if __name__ == "__main__":
    main()
