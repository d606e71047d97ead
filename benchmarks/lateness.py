"""Lateness of 30-second slots, from the slot to the job's start: periodiq with Rota's ledger, ten jobs at once.

Beside it, in the same minutes, periodiq and Dramatiq alone with a job per minute, the finest they have.

python -m benchmarks.lateness [--minutes 3]
"""

import argparse
import time

from benchmarks import meter
from benchmarks.harness import bench


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    options = parser.parse_args()
    with bench() as made:
        ours, bare = made.ticks / "ours", made.ticks / "bare"
        with (
            made.worker(ours, "core.main", "bench-slots"),
            made.process(ours, "periodiq", "core.main"),
            made.worker(bare, "benchmarks.bare_periodic", "bench-periodic"),
            made.process(bare, "periodiq", "benchmarks.bare_periodic"),
        ):
            first_minute = (
                time.time() // 60 * 60 + 60
            )  # periodiq also fires when it starts within a minute that matches
            time.sleep(options.minutes * 60 + 5)
        values = [(at - slot) * 1000 for at, slot in meter.ticks(ours)]
        yardstick = [(at - at // 60 * 60) * 1000 for at, _ in meter.ticks(bare) if at >= first_minute]
    p50, p99 = meter.percentile(values, 0.5), meter.percentile(values, 0.99)
    print(f"rota: {len(values)} slots, p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(values):.1f} ms (goal p99 100 ms)")
    bare_p50 = meter.percentile(yardstick, 0.5)
    print(f"periodiq and Dramatiq alone: {len(yardstick)} slots, p50 {bare_p50:.1f} ms, most {max(yardstick):.1f} ms")
    print(f"ratio of medians, alone/rota: {bare_p50 / p50:.1f}")


if __name__ == "__main__":
    main()
