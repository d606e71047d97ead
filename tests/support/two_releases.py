"""Processes of the release before beside those of this one, on one database and one Redis.

The release before is an archive in ``tests/releases``. Both have the same plugin, whose jobs each release declares with
the options that it knows. The module is copied to where the processes find it, so it also runs with the release before.
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
#: Starts of the fast lane are pushed here.
FAST = "two-releases:fast"
#: The other plugins of this repository need this release.
OTHERS = "customer_service,expiry,mail,maintenance"

EFFECTS = """
    CREATE TABLE effects (
        id bigserial PRIMARY KEY, job text NOT NULL, run_id bigint NOT NULL, slot timestamptz, attempt int NOT NULL,
        pid int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
INSERT = text("INSERT INTO effects (job, run_id, slot, attempt, pid) VALUES (:job, :run, :slot, :attempt, :pid)")
SECOND = timedelta(seconds=1)


def only_now(**options: Any) -> dict[str, Any]:
    """Options that the release before does not know."""
    return options if HAS_FLOW_CONTROL else {}


def limits() -> dict[str, Any]:
    """A limit of three runs at work."""
    from core import Limit

    return {"limits": [Limit("mixed", at_once=3)]}


def keyed() -> dict[str, Any]:
    """Schedules of keys, of a second and more."""
    from core import Keyed

    return {"keyed": Keyed(least=SECOND)}


def effect(run: Run) -> None:
    """Leave a trace in this run's transaction."""
    values = {"job": run.job, "run": run.id, "slot": run.slot, "attempt": run.attempt, "pid": os.getpid()}
    run.session.execute(INSERT, values)


@job("invoice", queue="mixed", **only_now(overlap="wait"))
def invoice(run: Run) -> None:
    """Leave an effect, for one customer after another."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("nap", queue="mixed", overlap="allow")
def nap(run: Run) -> None:
    """Leave an effect, and take a little while over it."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("nothing", queue="mixed", overlap="allow")
def nothing(run: Run) -> None:
    """Leave nothing, so that runs are claimed and recorded together."""


@job("flaky", queue="mixed", overlap="allow", max_retries=5, retry_delay=SECOND)
def flaky(run: Run) -> None:
    """Fail at the first attempt."""
    effect(run)
    if run.attempt == 1:
        raise RuntimeError("on purpose")


@job("postponed", queue="mixed", overlap="allow", max_retries=0)
def postponed(run: Run) -> None:
    """Be postponed once by this release; the release before does the work at once."""
    effect(run)
    if HAS_FLOW_CONTROL and run.attempt == 1:
        from core import Later

        raise Later(in_=SECOND)


@job("tick", queue="mixed", schedule=every(seconds=1), overlap="allow", misfire="all", retry_delay=SECOND)
def tick(run: Run) -> None:
    """Once a second."""
    effect(run)


@job("sweep", queue="mixed", schedule=every(seconds=1), retry_delay=SECOND)
def sweep(run: Run) -> None:
    """Take longer than a slot."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(1.2)"))


@job("hold", queue="mixed", overlap="allow", max_retries=0)
def hold(run: Run) -> None:
    """Leave an effect, and be busy for twenty seconds, in Python."""
    effect(run)
    for _ in range(2_000):
        time.sleep(0.01)


@job("limited", queue="mixed", overlap="allow", **(limits() if HAS_FLOW_CONTROL else {}))
def limited(run: Run) -> None:
    """Leave an effect; three such runs may be at work."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.1)"))


@job("polled", queue="mixed", **(keyed() if HAS_FLOW_CONTROL else {}))
def polled(run: Run) -> None:
    """Leave an effect, at the slots of its key."""
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
    """Unpack the release before into ``folder``; return the folder that has its ``core``."""
    with tarfile.open(RELEASES / f"{FORMER}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    info = folder / "rota.egg-info"  # both releases are called by the same name and version
    info.mkdir()
    (info / "PKG-INFO").write_text(importlib.metadata.distribution("rota").read_text("METADATA") or "")
    return folder
