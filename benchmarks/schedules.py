"""Measures many schedules that are due at one instant: the time from their slot until the last message is on its queue.

It compares periodiq with Rota's ledger, and periodiq and Dramatiq alone, at the same minutes, without workers.

python -m benchmarks.schedules [--schedules 10000] [--minutes 3]
"""

import argparse
import time
from contextlib import ExitStack
from statistics import median

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench

QUEUES = {"rota": "bench-minutes", "alone": "bench-periodic"}
#: How often the queues are looked at, in seconds.
LOOK_SECONDS = 0.02
#: How long after its minute the last is waited for, in seconds.
WITHIN_SECONDS = 50


def fill(made: Bench, slot: float, count: int) -> dict[str, float]:
    """Seconds from ``slot`` until each queue has ``count`` messages."""
    filled: dict[str, float] = {}
    time.sleep(max(slot - 1 - time.time(), 0))
    for queue in QUEUES.values():
        made.client.delete(f"dramatiq:{queue}", f"dramatiq:{queue}.msgs")
    while len(filled) < len(QUEUES) and time.time() < slot + WITHIN_SECONDS:
        for name, queue in QUEUES.items():
            if name not in filled and made.client.llen(f"dramatiq:{queue}") >= count:
                filled[name] = time.time() - slot
        time.sleep(LOOK_SECONDS)
    return filled


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--minutes", type=int, default=3)
    options = parser.parse_args()
    environ = {"BENCH_SCHEDULES": str(options.schedules)}
    lags: dict[str, list[float]] = {name: [] for name in QUEUES}
    with bench() as made, ExitStack() as stack:
        for module in ("core.main", "benchmarks.bare_periodic"):
            stack.enter_context(made.process(made.ticks / "none", "periodiq", module, **environ))
        first = time.time() // 60 * 60 + 60
        first += 60 if first - time.time() < 20 else 0  # both must have started
        for minute in range(options.minutes + 1):
            filled = fill(made, first + 60 * minute, options.schedules)
            if minute:  # the first is the warm-up
                for name in QUEUES:
                    lags[name].append(filled.get(name, float("inf")))
    for name, values in lags.items():
        print(f"{name:6} {options.schedules} schedules: {meter.spread(values)} s from slot to the last on its queue")
    print("(goal for rota: at most 2 s)")
    goals.at_most(f"{options.schedules:,} schedules on their queue", median(lags["rota"]), 2, "s")
    ratios = [alone / rota for alone, rota in zip(lags["alone"], lags["rota"], strict=True)]
    print(f"ratio alone/rota: {meter.spread(ratios)}")


if __name__ == "__main__":
    main()
