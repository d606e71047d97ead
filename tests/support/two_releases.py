"""Processes of the previous release and of this release, on one database and one Redis.

The previous release is an archive in ``tests/releases``. Both releases load the same plugin, whose jobs each release
declares with the options that it knows. This module is copied to where the processes find it, so it also runs with the
previous release.
"""

import importlib.metadata
import inspect
import os
import shutil
import tarfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text

from core import Run, every, hookimpl, job

FORMER = "0218274"
RELEASES = Path(__file__).parents[1] / "releases"
HAS_FLOW_CONTROL = "expires" in inspect.signature(job).parameters
#: The list of starts on the fast lane.
FAST = "two-releases:fast"
#: Plugins of this repository that need this release.
OTHERS = ",".join(sorted(path.parent.name for path in Path(__file__).parents[2].glob("plugins/*/pyproject.toml")))

EFFECTS = """
    CREATE TABLE effects (
        id bigserial PRIMARY KEY, job text NOT NULL, run_id bigint NOT NULL, slot timestamptz, attempt int NOT NULL,
        pid int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
INSERT = text("INSERT INTO effects (job, run_id, slot, attempt, pid) VALUES (:job, :run, :slot, :attempt, :pid)")
SECOND = timedelta(seconds=1)


def only_now(**options: Any) -> dict[str, Any]:
    """Return the options if this release runs. The previous release does not know them."""
    return options if HAS_FLOW_CONTROL else {}


def limits() -> dict[str, Any]:
    """Return a limit of three runs at work."""
    from core import Limit

    return {"limits": [Limit("mixed", at_once=3)]}


def keyed() -> dict[str, Any]:
    """Return the option for schedules of keys, of a second or more."""
    from core import Keyed

    return {"keyed": Keyed(least=SECOND)}


def effect(run: Run) -> None:
    """Write an effect in this run's transaction."""
    values = {"job": run.job, "run": run.id, "slot": run.slot, "attempt": run.attempt, "pid": os.getpid()}
    run.session.execute(INSERT, values)


@job("invoice", queue="mixed", **only_now(overlap="wait"))
def invoice(run: Run) -> None:
    """Write an effect. Runs of one customer do not overlap."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("nap", queue="mixed", overlap="allow")
def nap(run: Run) -> None:
    """Write an effect, which takes a short time."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("nothing", queue="mixed", overlap="allow")
def nothing(run: Run) -> None:
    """Write nothing, so that runs are claimed and recorded together."""


@job("flaky", queue="mixed", overlap="allow", max_retries=5, retry_delay=SECOND)
def flaky(run: Run) -> None:
    """Fail at the first attempt."""
    effect(run)
    if run.attempt == 1:
        raise RuntimeError("on purpose")


@job("postponed", queue="mixed", overlap="allow", max_retries=0)
def postponed(run: Run) -> None:
    """Postpone the run once in this release. In the previous release, do the work at once."""
    effect(run)
    if HAS_FLOW_CONTROL and run.attempt == 1:
        from core import Later

        raise Later(in_=SECOND)


@job("tick", queue="mixed", schedule=every(seconds=1), overlap="allow", misfire="all", retry_delay=SECOND)
def tick(run: Run) -> None:
    """Have a slot every second."""
    effect(run)


@job("sweep", queue="mixed", schedule=every(seconds=1), retry_delay=SECOND)
def sweep(run: Run) -> None:
    """Work for longer than the time between two slots."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(1.2)"))


@job("hold", queue="mixed", overlap="allow", max_retries=0)
def hold(run: Run) -> None:
    """Write an effect, and be busy in Python code for twenty seconds."""
    effect(run)
    for _ in range(2_000):
        time.sleep(0.01)


@job("limited", queue="mixed", overlap="allow", **(limits() if HAS_FLOW_CONTROL else {}))
def limited(run: Run) -> None:
    """Write an effect. Three such runs may be at work."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.1)"))


@job("polled", queue="mixed", **(keyed() if HAS_FLOW_CONTROL else {}))
def polled(run: Run) -> None:
    """Write an effect at the slots of a key."""
    effect(run)


@job("fast", queue="mixed-fast", ledger=False)
def fast(run: Run, number: int) -> None:
    """Tell the test of a message of the fast lane."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"])
    client.rpush(FAST, number)
    client.close()


class Mixed:
    """The plugin."""

    @hookimpl
    def register_jobs(self):
        return [invoice, nap, nothing, flaky, postponed, tick, sweep, hold, limited, polled, fast]


plugin = Mixed()


def install(folder: Path) -> None:
    """Write this plugin into ``folder`` as pip would."""
    info = folder / "mixed-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mixed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nmixed = mixed_jobs:plugin\n")
    shutil.copy(__file__, folder / "mixed_jobs.py")


def unpack(folder: Path) -> Path:
    """Unpack the previous release into ``folder``. Return the folder that contains its ``core``."""
    with tarfile.open(RELEASES / f"{FORMER}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    info = folder / "rota.egg-info"  # both releases have the same name and version
    info.mkdir()
    (info / "PKG-INFO").write_text(importlib.metadata.distribution("rota").read_text("METADATA") or "")
    return folder
