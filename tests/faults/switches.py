"""Switches inside the processes under test: a wrong clock, and a leader without the lock. Files turn the switches on
from outside.

The test plugin installs the switches, and lets slots count as late sooner. The core does not know about the switches.
"""

import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq.common
import psycopg2
from sqlalchemy import Connection

from core.dispatcher import leadership
from core.ledger import slots
from core.ledger.runs import DUE_CHANNEL
from core.scheduling import misfires

#: A slot is late after this time, so that rounds of less than a minute have late slots.
TOLERANCE = timedelta(seconds=5)
FOLDER, NAME = "FAULTS_SWITCHES", "FAULTS_NAME"


def clock_file(folder: Path, name: str) -> Path:
    """Return the file with the number of seconds by which the clock of a process is wrong."""
    return folder / f"clock-{name}"


def usurper_file(folder: Path, name: str) -> Path:
    """Return the file whose existence makes the dispatcher of a process believe that it leads."""
    return folder / f"usurper-{name}"


def install() -> None:
    """Install the switches in a process that was started with them."""
    if FOLDER in os.environ:
        folder, name = Path(os.environ[FOLDER]), os.environ[NAME]
        install_clock(clock_file(folder, name))
        install_usurper(usurper_file(folder, name))
        slots.TOLERANCE = misfires.TOLERANCE = TOLERANCE


def install_clock(path: Path) -> None:
    """Shift ``time.time``, which ``core.clock`` and Dramatiq read, and periodiq's clock by the same number of
    seconds.
    """
    right = time.time
    path.touch()
    opened = os.open(path, os.O_RDONLY)

    def error_seconds() -> float:
        return float(os.pread(opened, 32, 0) or 0)

    time.time = dramatiq.common.time = lambda: right() + error_seconds()
    if "periodiq" in sys.modules:
        periodiq: Any = sys.modules["periodiq"]
        periodiq.pendulum = WrongPendulum(periodiq.pendulum, error_seconds)


@dataclass
class WrongPendulum:
    """The module pendulum with a wrong ``now``."""

    right: Any
    error_seconds: Any

    def now(self, *args: Any) -> Any:
        return self.right.now(*args) + timedelta(seconds=self.error_seconds())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.right, name)


def install_usurper(path: Path) -> None:
    """Lead without the lock while ``path`` exists, and step down when it is deleted."""
    ask, wait_for_runs = leadership.ask, leadership.wait_for_runs
    usurping: set[int] = set()

    def ask_or_take(connection: Connection) -> leadership.Answer:
        if not path.exists():
            return ask(connection)
        usurping.add(id(connection))
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
        return leadership.Answer(is_won=True, workers=1)

    def wait_or_step_down(connection: Connection, timeout_seconds: float) -> bool:
        if id(connection) in usurping and not path.exists():
            usurping.clear()
            raise psycopg2.OperationalError("stepping down")
        return wait_for_runs(connection, timeout_seconds)

    leadership.ask, leadership.wait_for_runs = ask_or_take, wait_or_step_down
