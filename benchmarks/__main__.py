"""``make bench``: every benchmark of the core, one after the other."""

import runpy
import sys

CORE = ("throughput", "latency", "lateness", "schedules", "bulk", "memory")

for name in CORE:
    print(f"\n== {name}", flush=True)
    sys.argv = [f"benchmarks.{name}"]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
