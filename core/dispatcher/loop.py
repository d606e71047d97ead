"""The dispatcher's thread: becomes the leader if no other process leads, and then does one pass after another until
stopped.
"""

import sys
import time
from collections.abc import Mapping
from datetime import datetime

import redis
from sqlalchemy import Connection, Engine

from core import database
from core.dispatcher import leadership, sending
from core.dispatcher.accounting import Accountant
from core.dispatcher.deadlines import expire
from core.dispatcher.key_slots import KeyAccountant
from core.dispatcher.key_watch import KeyWatch
from core.dispatcher.orphans import OrphanKeeper
from core.dispatcher.overdue_alarm import Watch
from core.dispatcher.recall import recall
from core.dispatcher.recovery import PLANS, Outage, Recovery
from core.dispatcher.sending import Sharing
from core.dispatcher.steps import Steps
from core.dispatcher.turns import RoomKeeper, TurnKeeper
from core.dispatcher.windows import Windows
from core.jobs.registry import Registry
from core.ledger import agenda, pauses, releases, slots
from core.ledger import due as due_runs
from core.ledger.agenda import Agenda
from core.ledger.carrier import DispatchCarrier
from core.ledger.releases import Fleet, FleetCache
from core.ledger.sessions import AGAIN_SECONDS, LedgerThread
from core.observability import metrics
from core.observability.events import (
    DispatcherFailed,
    DispatcherInterrupted,
    DispatcherLeading,
    DispatcherNotRecovered,
    DispatcherSteppedDown,
    emit,
)
from core.observability.logs import EmitOnce
from core.scheduling.misfires import miss_late

#: How often to requeue messages of processes that send no heartbeat to Redis, in seconds.
MAINTENANCE_SECONDS = 15.0
#: A leader that has not reached Redis for this many seconds steps down if another worker can lead.
REDIS_LOST_SECONDS = 10.0
#: How often to look whether a queue has room again, in seconds.
LOOK_FOR_ROOM_SECONDS = 0.1
#: A leader that stepped down waits this much longer than other processes before it asks for leadership, in seconds.
GIVE_WAY_SECONDS = 2.0


class Dispatcher(LedgerThread):
    """The dispatcher's thread in one worker process. One dispatcher of the fleet leads."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        carrier: DispatchCarrier,
        *,
        every_seconds: float,
        resend_seconds: float,
        max_crashes: int,
        orphan_seconds: float,
        redis_lost_seconds: float = REDIS_LOST_SECONDS,
        outage: Outage | None = None,
    ) -> None:
        """``outage`` is shared with other threads of this process. Each of them records when PostgreSQL is
        unavailable.
        """
        super().__init__(engine, "rota-dispatcher")
        self._registry = registry
        self._carrier = carrier
        self._every_seconds = every_seconds
        self._resend_seconds = resend_seconds
        self._orphan_seconds = orphan_seconds
        self._redis_lost_seconds = redis_lost_seconds
        #: The time when Redis last answered, or when this process became the leader.
        self._heard_at = 0.0
        self._orphan_keeper = OrphanKeeper(registry, carrier, orphan_seconds)
        self._watch = Watch(registry)
        self._key_watch = KeyWatch()
        self._fleet_cache = FleetCache()
        self._fleet = Fleet()
        #: For each paused job, the time when its pause began.
        self._held: Mapping[str, datetime] = {}
        #: Whether a pause was active in the last pass. The first pass after the end of a pause must do all steps.
        self._was_paused = True
        self._maintained_at = 0.0
        self._outage = outage or Outage()
        #: The wait before asking for leadership again. It is longer after stepping down.
        self._again_seconds = AGAIN_SECONDS
        self._max_crashes = max_crashes
        self._key_accountant = KeyAccountant(registry)
        self._steps = Steps()
        self._turns = TurnKeeper()
        self._rooms = RoomKeeper()
        self._windows = Windows()
        self._sharing = Sharing(windows=self._windows)
        self._log_once = EmitOnce()

    def work(self, connection: Connection) -> None:
        """Wait to become the leader, and then lead."""
        self._outage.end()
        self._stand(connection)
        self._again_seconds = self._every_seconds + GIVE_WAY_SECONDS

    def interrupted(self, error: Exception) -> None:
        """Record the outage. It gives processes time to register again before they count as dead."""
        self._outage.goes_on(time.monotonic())
        self._log_once.emit(DispatcherInterrupted(database.brief(error)))

    def failed(self) -> None:
        """Log the error."""
        emit(DispatcherFailed(), sys.exception())

    def ended(self) -> float:
        """Export that this process no longer leads. Return how many seconds to wait before asking for leadership
        again.
        """
        metrics.leading(False)
        seconds, self._again_seconds = self._again_seconds, AGAIN_SECONDS
        return seconds

    def _stand(self, connection: Connection) -> None:
        while not (answer := self._ask_to_lead(connection)).is_won:
            if self._stopping.wait(answer.pause_seconds(self._every_seconds)):
                return
        connection.exec_driver_sql(PLANS)
        accountant = Accountant(self._registry, slots.watermarks(connection))
        self._key_accountant = KeyAccountant(self._registry)
        emit(DispatcherLeading())
        metrics.leading(True)
        self._orphan_keeper = OrphanKeeper(self._registry, self._carrier, self._orphan_seconds)
        self._watch = Watch(self._registry)
        self._key_watch = KeyWatch()
        self._heard_at = time.monotonic()
        recovery = Recovery(
            self._engine, self._carrier, self._outage, every_seconds=self._every_seconds, max_crashes=self._max_crashes
        )
        recovery.start()
        try:
            self._lead(connection, accountant)
        finally:
            recovery.stop()

    def _ask_to_lead(self, connection: Connection) -> leadership.Answer:
        with self._outage.timed():
            return leadership.ask(connection)

    def _lead(self, connection: Connection, accountant: Accountant) -> None:
        """Do one pass after another, until stopped or until another worker should lead."""
        while not self._stopping.is_set():
            began = time.monotonic()
            self.pass_once(connection, accountant)
            self._log_once.reset()
            metrics.dispatched(time.monotonic() - began)
            if self._has_lost_redis() and leadership.has_others(connection):
                emit(DispatcherSteppedDown())
                return
            self._send_until(connection, began + self._every_seconds)

    def _send_until(self, connection: Connection, next_pass: float) -> None:
        """Until the next pass, send due runs, and send new runs as soon as they are requested.

        Also wake parked runs when one of their limits is refilled, or when a closing ends.
        """
        has_more = True
        while (now := time.monotonic()) < next_pass and not self._stopping.is_set():
            if now >= self._rooms.due_at:
                has_more = bool(self._steps.take("rooms", self._look_for_room, connection)) or has_more
            remaining = min(next_pass, self._rooms.due_at) - now
            if has_more or self._wait_for_runs(connection, max(remaining, 0)):
                has_more = self._steps.take("send", self._send_due, connection) or False

    def _wait_for_runs(self, connection: Connection, seconds: float) -> bool:
        """Wait until runs are requested, or until a queue may have room for due runs.

        Return whether there may be runs to send.
        """
        if self._windows.was_full:
            return not self._stopping.wait(min(seconds, LOOK_FOR_ROOM_SECONDS))
        return leadership.wait_for_runs(connection, seconds)

    def _has_lost_redis(self) -> bool:
        """Return whether this process has not reached Redis for a while. Another leader may still reach Redis."""
        if self._carrier.carries:
            self._heard_at = time.monotonic()
        return time.monotonic() >= self._heard_at + self._redis_lost_seconds

    def pass_once(self, connection: Connection, accountant: Accountant) -> None:
        """Do one pass: take the steps that are due. Recovery is not among them, since it has its own thread.

        Each step takes a bounded time, and an error in one step does not prevent the others.
        """
        found = self._steps.take("ask", self._ask, connection)
        if found is None or found.has_work or found.is_paused or self._was_paused or accountant.is_due(found.now):
            self._work(connection, accountant)
            self._was_paused = found is None or found.is_paused
        if self._orphan_keeper.is_time_to_look():
            self._steps.take("fleet", self._look_at_fleet, connection)
            self._steps.take("orphans", self._orphan_keeper.look, connection, self._fleet)
        self._steps.take("recall", self._recall, connection)
        self._steps.take("key slots", self._key_accountant.account, connection, self._fleet)
        self._steps.take("overdue", self._watch.look, connection, self._held)
        self._steps.take("key metrics", self._key_watch.look, connection)
        self._steps.take("maintain", self._maintain)

    def _ask(self, connection: Connection) -> Agenda:
        with self._outage.timed():
            return agenda.ask(connection, slots.TOLERANCE.total_seconds(), self._resend_seconds)

    def _work(self, connection: Connection, accountant: Accountant) -> None:
        self._steps.take("fleet", self._look_at_fleet, connection)
        self._steps.take("pauses", self._look_for_pauses, connection)
        self._steps.take("account", accountant.account, connection, self._carrier)
        self._steps.take("deadlines", expire, connection)
        self._steps.take("misfires", miss_late, connection, self._registry, self._held)
        self._steps.take("lost", sending.find_lost, connection, self._carrier, self._resend_seconds)
        self._steps.take("turns", self._turns.look, connection)
        self._steps.take("rooms", self._look_for_room, connection)
        self._steps.take("send", self._send_due, connection)

    def _look_at_fleet(self, connection: Connection) -> None:
        self._fleet = self._fleet_cache.fleet(connection)

    def _send_due(self, connection: Connection) -> bool:
        """Send due runs for a while. Return whether there may be more due runs."""
        if not due_runs.is_any_due(connection):  # this query is cheaper, since it does not compare jobs
            return False
        return sending.send_due(connection, self._sendable(), self._carrier, self._sharing) > 0

    def _recall(self, connection: Connection) -> None:
        recall(connection, self._carrier, self._windows, sorted(self._fleet.queues), self._sendable())

    def _look_for_pauses(self, connection: Connection) -> None:
        active = pauses.active(connection)
        metrics.paused([pause.scope for pause in active])
        theirs = releases.scopes_of_jobs(connection) if active else {}
        self._held = pauses.held(active, {**theirs, **self._registry.scopes})

    def _look_for_room(self, connection: Connection) -> int:
        return self._rooms.look(connection, self._sendable())

    def _sendable(self) -> set[str]:
        """Return the jobs whose runs may be sent: the jobs of all live processes that are not paused."""
        return {*self._registry.jobs, *self._fleet.queues_of} - self._held.keys()

    def _maintain(self) -> None:
        if time.monotonic() < self._maintained_at + MAINTENANCE_SECONDS:
            return
        self._maintained_at = time.monotonic()
        try:
            self._carrier.maintain(self._fleet.queues)
        except redis.RedisError as error:
            emit(DispatcherNotRecovered(str(error)))
