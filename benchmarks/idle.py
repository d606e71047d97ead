"""Measures the cost of idle workers: processor seconds in half a minute, of bare Dramatiq, and of Rota on one queue and
on many.

All run at the same time on the same servers, each with two processes of eight threads. Each Rota has a database of its
own, so that each has one process that dispatches. No job has a schedule.

python -m benchmarks.idle [--seconds 30] [--repetitions 5]
"""

import argparse
import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import goals, meter
from benchmarks.harness import PROCESSES, THREADS, Bench, bench
from core import database
from core.plugins import loading
from core.schema import upgrade
from core.testing import create_database

#: How long workers are left alone before they are measured, in seconds.
SETTLE_SECONDS = 8
TICKS = os.sysconf("SC_CLK_TCK")
SIZE = ("-p", str(PROCESSES), "-t", str(THREADS))
WORKERS = {
    "bare": ("dramatiq", "benchmarks.bare", *SIZE),
    "one queue": ("dramatiq", "core.main", *SIZE, "-Q", "bench-fast"),
    "22 queues": ("dramatiq", "core.main", *SIZE),
}
#: Twenty more queues, and none of the jobs that this repository's plugins would start meanwhile.
ENVIRON = {"BENCH_QUEUES": "20", "ROTA_DISABLED_PLUGINS": "customer_service,expiry,mail,maintenance"}


def own_database(made: Bench, name: str) -> str:
    """The URL of a database that has the ledger and nothing else."""
    url = create_database(made.postgres_url, name)
    engine = database.connect(url)
    list(upgrade.upgrade(engine, loading.current()))
    database.dispose(engine)
    return url


def used(leader: int) -> float:
    """Processor seconds that a session's processes have used so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == leader:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    costs: dict[str, list[float]] = {name: [] for name in WORKERS}
    with bench() as made, ExitStack() as stack:
        started = {
            name: stack.enter_context(
                made.process(made.ticks / "none", *command, **ENVIRON, DATABASE_URL=own_database(made, name))
            ).pid
            for name, command in WORKERS.items()
        }
        time.sleep(SETTLE_SECONDS)
        for _ in range(options.repetitions):
            before = {name: used(pid) for name, pid in started.items()}
            time.sleep(options.seconds)
            for name, pid in started.items():
                costs[name].append(used(pid) - before[name])
    for name, values in costs.items():
        print(f"{name:10} {meter.spread(values)} CPU s in {options.seconds:.0f} s, {PROCESSES} processes")
    for name in ("one queue", "22 queues"):
        ratios = [ours / bare for ours, bare in zip(costs[name], costs["bare"], strict=True)]
        print(f"ratio {name}/bare: {meter.spread(ratios)}")
        goals.at_most(f"idle worker, {name}, CPU in 30 s", median(costs[name]) * 30 / options.seconds, 0.1, "s")


if __name__ == "__main__":
    main()
