"""When a run of this process ends, wakes the runs that wait for this run, or for a limit that it held.

A run whose claim finds that it must wait for another run or for a limit is *parked*. A run may be parked just when the
run that it waits for ends, so that this end does not wake it. Therefore the process that parked the run checks twice
whether the run must be woken: at once, and when a commit that was in progress must have ended.

A transaction that has called ``enqueue(…, unless="waiting")`` locks a waiting run. If a claim finds a run locked, the
run is sent again when the lock has ended.
"""

import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import redis
from sqlalchemy import Connection, Engine

from core import database
from core.batching import Batcher
from core.jobs.job import Job
from core.ledger import due, outbox, room, runs, turns
from core.ledger.carrier import Carrier, OutgoingRun
from core.ledger.models import State
from core.ledger.turns import Turn
from core.observability import metrics
from core.observability.events import DispatcherNotSent, RunNotWoken, RunSkipped, emit

#: A parked run is checked after this many seconds. A commit seldom takes longer.
LOOK_AGAIN_SECONDS = 0.05
#: A run that a claim has found locked is checked after this many seconds.
LOCKED_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that this process has parked."""

    run_id: int
    #: Whether the run is a slot that replaces older waiting slots, which are then skipped.
    replaces_older: bool
    is_second_look: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """A limit that has room, since a run of this process that counted for the limit has ended."""

    name: str


@dataclass(frozen=True, slots=True)
class Limited:
    """A run with limits that this process has parked, since a limit is full or another run of its key comes first."""

    run_id: int
    is_second_look: bool = False


@dataclass(frozen=True, slots=True)
class Locked:
    """A run that a claim has found locked."""

    run_id: int


Item = Turn | Parked | Room | Limited | Locked


class Wakes(Batcher[Item]):
    """The thread that wakes parked runs. The dispatcher wakes the runs that this thread cannot wake."""

    name = "rota-wakes"
    most_together = 500
    gather_seconds = 0.001
    again_seconds = 1.0
    stop_seconds = 2.0

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def parked(self, job: Job, run_id: int) -> None:
        """Check whether the run, which has just been parked, must be woken."""
        self.add(Parked(run_id, replaces_older=job.overlap == "wait" and job.schedule is not None))

    def limited(self, run_id: int) -> None:
        """Check whether the run, which has just been parked, must be woken, since one of its limits has room.

        If other runs come before it, wake these instead.
        """
        self.add(Limited(run_id))

    def locked(self, run_id: int) -> None:
        """Let the dispatcher send the run again when its lock has ended."""
        self._add_after(LOCKED_AGAIN_SECONDS, [Locked(run_id)])

    def deal_with(self, batch: Sequence[Item]) -> None:
        """Wake the runs that can start because of ``batch``, and send their messages."""
        ended = {each for each in batch if isinstance(each, Turn)}
        parked = [each for each in batch if isinstance(each, Parked)]
        rooms = Counter(each.name for each in batch if isinstance(each, Room))
        limited = [each for each in batch if isinstance(each, Limited)]
        left: Collection[int] = {each.run_id for each in batch if isinstance(each, Locked)}
        try:
            with database.autocommit(self._engine) as connection:
                supersede(connection, [each.run_id for each in parked if each.replaces_older])
                wake(connection, ended, [each.run_id for each in parked])
                fill(connection, rooms, [each.run_id for each in limited])
                left = release(connection, left)
        except database.DATABASE_AWAY as error:
            emit(RunNotWoken(len(batch), database.brief(error)))
        second = [
            replace(each, replaces_older=False, is_second_look=True) for each in parked if not each.is_second_look
        ]
        again = [replace(each, is_second_look=True) for each in limited if not each.is_second_look]
        self._add_after(LOOK_AGAIN_SECONDS, [*second, *again])
        self._add_after(LOCKED_AGAIN_SECONDS, [Locked(run_id) for run_id in left])

    def failed(self, error: Exception) -> None:
        """Log the error."""
        emit(RunNotWoken(len(self._waiting), database.brief(error)), error)

    def _add_after(self, seconds: float, items: Sequence[Item]) -> None:
        def add() -> None:
            for item in items:
                self.add(item)

        if items and not self._stopping.is_set():
            timer = threading.Timer(seconds, add)
            timer.daemon = True
            with suppress(RuntimeError):  # no thread can be started now
                timer.start()


def wake(connection: Connection, ended: Collection[Turn], waiting: Collection[int]) -> None:
    """Wake the next run of each key in ``ended``, and those of the ``waiting`` runs that can start. Send these runs."""
    if ended or waiting:
        carrier = present_carrier()
        send(connection, carrier, turns.wake(connection, ended, waiting, carried=carrier is not None))


def fill(connection: Connection, rooms: Mapping[str, int], waiting: Collection[int]) -> None:
    """Wake the next runs of each limit in ``rooms`` and of the limits of the ``waiting`` runs. Send these runs."""
    if rooms or waiting:
        carrier = present_carrier()
        send(connection, carrier, room.wake(connection, rooms, waiting, carried=carrier is not None))


def present_carrier() -> Carrier | None:
    """Return the carrier that can send messages now, or None if workers take runs from the ledger without Redis."""
    carrier = outbox.carrier()
    return carrier if carrier is not None and carrier.carries else None


def send(connection: Connection, carrier: Carrier | None, woken: Sequence[OutgoingRun]) -> None:
    """Send runs that were woken. Without a carrier, announce them to the workers that take runs from the ledger."""
    if not woken:
        return
    if carrier is None:
        runs.announce(connection)
        return
    try:
        carrier.send(woken)
    except redis.RedisError as error:
        due.release(connection, woken)
        emit(DispatcherNotSent(len(woken), str(error)))


def supersede(connection: Connection, newer: Collection[int]) -> None:
    """Skip the waiting slots that newer slots replace."""
    for run_id, job in turns.supersede(connection, newer) if newer else ():
        metrics.run_ended(job, State.SKIPPED)
        emit(RunSkipped(job, run_id, "superseded"))


def release(connection: Connection, run_ids: Collection[int]) -> list[int]:
    """Let the dispatcher send the runs again that are no longer locked. Return the runs that are still locked."""
    if not run_ids:
        return []
    left = due.release_unlocked(connection, run_ids)
    if len(left) < len(run_ids):
        runs.announce(connection)
    return left
