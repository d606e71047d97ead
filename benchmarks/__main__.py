"""``make bench``: every benchmark of the core, one after the other."""

import runpy
import sys

CORE = ("throughput", "latency", "lateness", "schedules", "bulk", "memory")
#: Take some minutes each, and are run by name.
PLUGINS = ("coupons", "temp_files", "statistics_sweep")

for name in CORE:
    print(f"\n== {name}", flush=True)
    sys.argv = [f"benchmarks.{name}"]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")

print(f"\nthose of the plugins: {', '.join(f'python -m benchmarks.{name}' for name in PLUGINS)}")
