"""How soon a request starts while a backlog of its queue is worked off: an urgent one, and ordinary ones beside it.

Real workers, 2 processes of 8 threads. The backlog has 200,000 runs of 5 ms over 5,000 keys and 50 jobs. Every second
an application without Redis requests an urgent run, a run of a key of its own, and one of a key of the backlog.
With ``--job-seconds 0.288 --seconds 3600`` the backlog lasts an hour.

python -m benchmarks.urgency [--runs 200000] [--keys 5000] [--jobs 50] [--job-seconds 0.005] [--seconds 60] [--local]
"""

import argparse
import time

from sqlalchemy import text

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench, wait_for

FILL = text("""
    INSERT INTO rota_runs (job, queue, key, exclusive)
    SELECT 'bench-job-' || mod(n, :jobs), 'bench-jobs', 'key ' || mod(n, :keys), false
    FROM generate_series(1, :runs) AS n
""")
REQUEST = text("""
    INSERT INTO rota_runs (job, queue, key, exclusive, priority)
    VALUES ('bench-job-0', 'bench-jobs', :key, false, :priority) RETURNING id
""")
STARTED = text("""
    SELECT extract(epoch FROM started_at - queued_at) AS seconds FROM rota_runs WHERE id = ANY(:ids) AND attempt > 0
""")
DONE = text("SELECT count(*) FROM rota_runs WHERE state = 'succeeded'")
GOAL_SECONDS = 1.0
#: What is requested: its priority, and whether its key is its own.
REQUESTS = {"urgent": (9, False), "of its own key": (0, True), "of a key of the backlog": (0, False)}


def request(made: Bench, number: int) -> dict[str, int]:
    """Request one run of each kind; return their ids."""
    with made.engine.begin() as connection:
        ids = {
            what: connection.execute(
                REQUEST, {"key": f"own {number}" if is_own else "key 0", "priority": priority}
            ).scalar_one()
            for what, (priority, is_own) in REQUESTS.items()
        }
        connection.exec_driver_sql("NOTIFY rota_due")
        return ids


def done(made: Bench) -> int:
    """How many runs have succeeded."""
    with made.engine.connect() as connection:
        return int(connection.execute(DONE).scalar_one())


def measure(made: Bench, seconds: int) -> None:
    """Request for that long, and print how soon each kind has started."""
    began, before = time.monotonic(), done(made)
    asked: list[dict[str, int]] = []
    while time.monotonic() - began < seconds:
        asked.append(request(made, len(asked)))
        time.sleep(1)
    rate = (done(made) - before) / (time.monotonic() - began)
    print(f"the backlog: {rate:.0f} runs a second")
    for what in REQUESTS:
        with made.engine.connect() as connection:
            rows = connection.execute(STARTED, {"ids": [each[what] for each in asked]}).scalars()
            started = sorted(float(each) for each in rows)
        if not started:
            print(f"{what:24} none of {len(asked)} started")
            continue
        figures = [meter.percentile(started, share) for share in (0.5, 0.99)]
        print(
            f"{what:24} {len(started)} of {len(asked)} started: p50 {figures[0]:.3f} s, p99 {figures[1]:.3f} s,"
            f" most {started[-1]:.3f} s"
        )
        if what == "urgent":
            goals.at_most("urgent run beside its queue's backlog, most", started[-1], GOAL_SECONDS, "s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--keys", type=int, default=5_000)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--job-seconds", type=float, default=0.005)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--local", action="store_true", help="in SCHEDULER_MODE=local, one process")
    options = parser.parse_args()
    with bench() as made:
        with made.engine.begin() as connection:
            connection.execute(FILL, {"runs": options.runs, "keys": options.keys, "jobs": options.jobs})
        command = ["python", "-m", "core.worker.local"] if options.local else ["dramatiq", "core.main", "-p2", "-t8"]
        mode = "local" if options.local else "auto"
        environ = {"BENCH_JOBS": str(options.jobs), "BENCH_JOB_SECONDS": str(options.job_seconds)}
        environ |= {"SCHEDULER_MODE": mode}
        with made.process(made.ticks / "urgency", *command, **environ):
            wait_for(lambda: done(made) > 0, within=60)
            measure(made, options.seconds)
    print(goals.table())


if __name__ == "__main__":
    main()
