"""Tells the supervisor that this process is alive, and ends the process if a thread makes no progress.

A thread is stuck if it has a message, is not in a job, and has made no progress for three leases although PostgreSQL
answers: for example, because it waits for a lock that is never released. Jobs are not checked, since they have time
limits. An isolated run is not checked either, since it has its own process. A process with a stuck thread is first
marked in the ledger, so that ``rota check`` reports it. After another three leases it ends. Its runs are then recovered
like the runs of any process that died.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker
from sqlalchemy import Engine

from core import database
from core.ledger import processes
from core.observability import logs
from core.observability.events import ProcessStuck, ProcessStuckEnds
from core.supervisor import worker_channel
from core.worker import interruption, isolation
from core.worker.heartbeat import Heartbeat
from core.worker.interruption import place_of

#: How often to check the threads, and to show that this process lives, in seconds.
LOOK_SECONDS = 1.0
#: The process of a stuck thread is reported after the time of this many leases.
NAMED_AFTER_LEASES = 3
#: The process ends after the time of this many leases.
ENDED_AFTER_LEASES = 6
#: At its end, the process waits at most this many seconds for its last log lines to be written.
FLUSH_SECONDS = 10.0
#: EX_SOFTWARE of sysexits.h, the same status as at a hard limit.
STUCK_EXIT = 70


class Liveness(Middleware):
    """Checks every second how long each thread has had its message."""

    def __init__(self, engine: Engine, heartbeat: Heartbeat, lease_seconds: float) -> None:
        self._engine = engine
        self._heartbeat = heartbeat
        self._lease_seconds = lease_seconds
        #: The time when this process as a whole was last paused, in monotonic seconds.
        self._paused_at = float("-inf")
        self._stopping = threading.Event()
        self._is_named = False

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start checking the threads."""
        threading.Thread(target=self._run, args=(worker,), name="rota-liveness", daemon=True).start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop checking, since the process ends."""
        self._stopping.set()

    def _run(self, worker: Any) -> None:
        supervisor, began = worker_channel.to_supervisor(), time.monotonic()
        while not self._stopping.wait(LOOK_SECONDS):
            if supervisor is not None:
                supervisor.show_life()
            now = time.monotonic()
            if now - began > 2 * LOOK_SECONDS:  # the whole process was paused
                self._paused_at = now
            self._look(now, worker.work_queue.busy_since)
            began = time.monotonic()

    def _look(self, now: float, busy_since: Mapping[int, float]) -> None:
        thread, seconds = max(self._standing(now, busy_since).items(), key=lambda item: item[1], default=(0, 0.0))
        is_stuck = seconds > NAMED_AFTER_LEASES * self._lease_seconds
        if is_stuck != self._is_named and self._name(is_stuck=is_stuck):
            self._is_named = is_stuck
            if is_stuck:
                logs.emit_unblocked(ProcessStuck(round(seconds), place_of(thread)))
        if self._is_named and seconds > ENDED_AFTER_LEASES * self._lease_seconds and self._name(is_stuck=True):
            logs.emit_unblocked(ProcessStuckEnds(round(seconds), place_of(thread)))
            logs.flush(FLUSH_SECONDS)
            os._exit(STUCK_EXIT)

    def _standing(self, now: float, busy_since: Mapping[int, float]) -> dict[int, float]:
        """Return for how many seconds each thread with a message has been outside of a job."""
        left_at, excused = interruption.outside_since(), isolation.threads | interruption.threads_in_jobs()
        return {
            thread: now - max(at, left_at.get(thread, at), self._paused_at)
            for thread, at in busy_since.items()
            if thread not in excused
        }

    def _name(self, *, is_stuck: bool) -> bool:
        """Record in the ledger whether this process is stuck.

        Return False if PostgreSQL does not answer, since the thread may then be waiting for PostgreSQL.
        """
        process_id = self._heartbeat.process_id
        if process_id is None:
            return False
        try:
            with database.alone(self._engine) as connection:
                return processes.name_stuck(connection, process_id, is_stuck=is_stuck)
        except database.DATABASE_AWAY:
            return False
