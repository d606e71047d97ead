"""``make bench``: runs the benchmarks of the core in turn, and prints the goals with the measured values."""

import runpy
import sys

from benchmarks import goals

CORE = ("throughput", "latency", "turns", "lateness", "schedules", "key_schedules", "bulk", "idle", "startup", "memory")
#: Take many minutes each, and are run by name.
LONG = (
    "recovery", "against_peers", "history", "pages", "scaling", "recycling", "coupons", "temp_files",
    "statistics_sweep",
)  # fmt: skip

for name in CORE:
    print(f"\n== {name}", flush=True)
    sys.argv = [f"benchmarks.{name}"]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")

print(f"\n== goals\n{goals.table()}")
print(f"\nby name, since they take long: {', '.join(f'python -m benchmarks.{name}' for name in LONG)}")
