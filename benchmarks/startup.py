"""Start-up: from starting a worker to its first job, beside bare Dramatiq; and ``rota jobs`` beside its two libraries.

python -m benchmarks.startup [--repetitions 7]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench, wait_for

#: What any service on Dramatiq and SQLAlchemy imports.
LIBRARIES = [sys.executable, "-c", "import dramatiq, sqlalchemy"]
JOBS = [str(Path(sys.executable).parent / "rota"), "jobs"]


def first_job(made: Bench, module: str, queue: str, name: str) -> float:
    """Seconds from starting a worker until it has begun a job that was waiting for it."""
    made.reset()
    ticks = made.ticks / name
    if queue == "bench-ledger":
        made.queue_runs(1)
    else:
        made.queue_messages(queue, 1)
    began = time.time()
    with made.worker(ticks, module, queue):
        wait_for(lambda: bool(meter.ticks(ticks)), within=60)
    return meter.ticks(ticks)[0][0] - began


def seconds(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    values: dict[str, list[float]] = {name: [] for name in ("bare", "fast", "ledger", "libraries", "rota jobs")}
    with bench() as made:
        first_job(made, "core.main", "bench-ledger", "warm-up")
        for number in range(options.repetitions):
            values["bare"].append(first_job(made, "benchmarks.bare", "bench-bare", f"bare-{number}"))
            values["fast"].append(first_job(made, "core.main", "bench-fast", f"fast-{number}"))
            values["ledger"].append(first_job(made, "core.main", "bench-ledger", f"ledger-{number}"))
            values["libraries"].append(seconds(LIBRARIES))
            values["rota jobs"].append(seconds(JOBS))
    for name, found in values.items():
        print(f"{name:10} {meter.spread(found)} s")
    for name, yardstick, goal in (("fast", "bare", 1.0), ("ledger", "bare", 1.0), ("rota jobs", "libraries", 0.5)):
        more = [ours - theirs for ours, theirs in zip(values[name], values[yardstick], strict=True)]
        print(f"{name} more than {yardstick}: {meter.spread(more)} s (goal: less than {goal} s)")
        goals.at_most(f"start-up, {name} more than {yardstick}", median(more), goal, "s")
        ratios = [ours / theirs for ours, theirs in zip(values[name], values[yardstick], strict=True)]
        print(f"ratio {name}/{yardstick}: {meter.spread(ratios)}")


if __name__ == "__main__":
    main()
