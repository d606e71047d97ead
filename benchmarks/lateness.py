"""Measures the time from a slot to the start of its job: periodiq with Rota's ledger, with one job alone and with ten
jobs at once.

For comparison, periodiq and Dramatiq alone run a job per minute at the same time, which is their shortest interval.

python -m benchmarks.lateness [--minutes 3]
"""

import argparse
import time

from benchmarks import goals, meter
from benchmarks.harness import PROCESSES, THREADS, bench

#: Ten jobs come together at the multiples of this, in seconds.
TOGETHER_SECONDS = 30
GOALS = {"p50": 15, "p99": 100}
WORKER = ("dramatiq", "core.main", "-p", str(PROCESSES), "-t", str(THREADS), "-Q", "bench-slots", "bench-alone")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    options = parser.parse_args()
    with bench() as made:
        ours, bare = made.ticks / "ours", made.ticks / "bare"
        with (
            made.process(ours, *WORKER),
            made.process(ours, "periodiq", "core.main"),
            made.worker(bare, "benchmarks.bare_periodic", "bench-periodic"),
            made.process(bare, "periodiq", "benchmarks.bare_periodic"),
        ):
            first_minute = (
                time.time() // 60 * 60 + 60
            )  # periodiq also fires when it starts within a minute that matches
            time.sleep(options.minutes * 60 + 5)
        found: dict[str, list[float]] = {"one job alone": [], "ten jobs at once": []}
        for at, slot in meter.ticks(ours):
            if slot >= first_minute:  # those before are late by the start of the processes
                found["ten jobs at once" if slot % TOGETHER_SECONDS == 0 else "one job alone"].append(at - slot)
        yardstick = [(at - at // 60 * 60) * 1000 for at, _ in meter.ticks(bare) if at >= first_minute]
    bare_p50 = meter.percentile(yardstick, 0.5)
    for what, seconds in found.items():
        values = [value * 1000 for value in seconds]
        p50, p99 = meter.percentile(values, 0.5), meter.percentile(values, 0.99)
        print(f"rota, {what}: {len(values)} slots, p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(values):.1f} ms")
        print(f"ratio of medians, alone/rota: {bare_p50 / p50:.1f}")
        for name, value in (("p50", p50), ("p99", p99)):
            goals.at_most(f"slot to start, {what}, {name}", value, GOALS[name], "ms")
    print(f"periodiq and Dramatiq alone: {len(yardstick)} slots, p50 {bare_p50:.1f} ms, most {max(yardstick):.1f} ms")


if __name__ == "__main__":
    main()
