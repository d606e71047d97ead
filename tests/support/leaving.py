"""A plugin that is installed and uninstalled during tests, as a package from which the tests build a real wheel."""

from functools import cache
from pathlib import Path

from tests.support.wheels import build, shared

DISTRIBUTION = "leaving-jobs"
PROJECT = """
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "leaving-jobs"
version = "{version}"

[project.entry-points."rota.plugins"]
leaving = "leaving_jobs"

[tool.setuptools]
py-modules = ["leaving_jobs"]
"""
#: ``own`` and ``fast-own`` are on a queue that only this plugin uses. The others share the queues of the chaos plugin.
MODULE = """
import os
from datetime import timedelta

from sqlalchemy import text

from core import Run, every, hookimpl, job

EFFECT = text("INSERT INTO effects (job, run_id, slot, attempt, pid) VALUES (:job, :run, :slot, :attempt, :pid)")


def effect(run):
    values = {"job": run.job, "run": run.id, "slot": run.slot, "attempt": run.attempt, "pid": os.getpid()}
    run.session.execute(EFFECT, values)


@job("leaving-tick", queue="leaving", schedule=every(seconds=1), overlap="allow", misfire="all")
def tick(run: Run) -> None:
    effect(run)


@job("leaving-shared", queue="chaos", overlap="allow")
def shared(run: Run) -> None:
    effect(run)


@job("leaving-own", queue="leaving", overlap="allow")
def own(run: Run) -> None:
    effect(run)


@job("leaving-fast", queue="chaos-fast", ledger=False)
def fast(run: Run) -> None:
    effect(run)


@job("leaving-fast-own", queue="leaving", ledger=False)
def fast_own(run: Run) -> None:
    effect(run)


@hookimpl
def register_jobs():
    return [tick, shared, own, fast, fast_own]
"""
BROKEN = "raise RuntimeError('no licence')\n"


@cache
def wheel(*, version: str = "1.0", module: str = MODULE) -> Path:
    """Return the path of the plugin's wheel, which is built once."""
    source = shared() / f"leaving-{version}"
    source.mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT.format(version=version))
    (source / "leaving_jobs.py").write_text(module)
    return build(source, shared() / f"leaving-wheels-{version}")
