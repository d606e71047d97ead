"""The fault-injection suite: a workload, faults drawn from a seed, and a checker in the style of Jepsen.

``python -m tests.faults --seconds 600 --seed 7`` injects real faults into three workers and two schedulers, and then
checks every run, every slot and every effect against the invariants of ``docs/invariants.md``.
"""
