"""Bugs that are added to the core from outside, to check that the checker finds them.

Each is a bug that a person might really write. A plant fails at once if it does not find the code that it must replace,
so that no plant is without effect.
"""

import os
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, text

from core import database, forks
from core.connections import WatchedConnection
from core.dispatcher import sending
from core.dispatcher.recovery import Outage
from core.ledger import claims, due, leases, processes, runs, shares, slots
from core.ledger.carrier import DispatchCarrier, OutgoingRun
from core.ledger.models import State
from core.middleware.db_session import DatabaseSession, Work
from core.middleware.execution import LOST, Execution
from core.worker.completions import Completion, Completions
from core.worker.outcomes import awaited
from tests.faults.flow_plants import FLOW_PLANTS
from tests.faults.history import BACKLOG
from tests.faults.plant import PLANT, Plant, rewritten

#: Longer than the time in which the dispatcher looks twice for dead processes.
SLOW_SECONDS = 3.0
REFUSED = ("PostgreSQL admits nobody", 3.0, None, 3.0)
STALLED = ("PostgreSQL stalled", 3.0, None, 6.0)
CROWDED = (BACKLOG, 2.0, None, 16.0)


def unfenced_commit() -> None:
    """Success is recorded, and checkpoints are committed, without a check of the lease.

    The connections of a silent process are not closed either, since this would hide the bug most of the time.
    """
    processes.DISCONNECT = text("SELECT CAST(:applications AS text[])")
    runs.SUCCEED = rewritten(runs.SUCCEED, leases.LEASE_IS_GOOD, "run.id = $1 AND $2 + $3 IS NOT NULL")
    leases.hold = lambda *_args: None


def lost_retry() -> None:
    """A failed attempt of an old slot is not retried, as with periodiq's middleware."""
    skipped = rewritten(runs.FAIL, "SET state = $4", "SET state = CASE $4 WHEN 'retrying' THEN 'skipped' ELSE $4 END")
    runs.FAIL = rewritten(skipped, "finished_at = CASE $4 WHEN 'dead' THEN", "finished_at = CASE WHEN true THEN")


def swallowed_failure() -> None:
    """An error during the recording of a failure is ignored, and the message is acknowledged."""
    runs.fail = lambda *_args: True


def claim_without_lock() -> None:
    """A claim does not look for a rival, and is not covered by the unique index that would stop it."""
    unlocked = rewritten(claims.CLAIM, "WHEN NOT exclusive THEN 'running'", "WHEN true THEN 'running'")
    claims.CLAIM = rewritten(unlocked, "attempt = attempt +", "exclusive = false, attempt = attempt +")


def slot_twice() -> None:
    """Each process that fires a slot inserts it, even if the slot exists already."""
    statement = slots.INSERT.text
    conflict = "ON CONFLICT (job, key, slot) WHERE slot IS NOT NULL DO NOTHING"
    assert conflict in statement, "slots.INSERT has changed"
    slots.INSERT = text(statement.replace(conflict, ""))


def forgotten_lease() -> None:
    """Dead processes are noticed, but their runs are not recovered."""
    processes.recover = lambda *_args: []


def two_commits() -> None:
    """Success is recorded in a transaction of its own, and the job's work is committed after it."""

    def succeed(
        _self: DatabaseSession,
        _execution: Execution,
        work: Work,
        lease: leases.Lease,
        _body: str | None,
        _log: str | None = None,
    ) -> str:
        with database.autocommit(work.engine) as connection:
            awaited(runs.succeed(connection, lease, None), lease)
        if work.has_begun:
            work.session.mark_fenced()
            work.session.commit()
        return State.SUCCEEDED

    DatabaseSession.succeed = succeed  # type: ignore[method-assign]


def dropped_message() -> None:
    """Messages that were sent to Redis are never sent again."""

    def find_lost(_connection: Connection, *_args: Any) -> int:
        return 0

    sending.find_lost = find_lost


def charged_refusal() -> None:
    """A connection that PostgreSQL refuses counts as a failure of the job."""
    database.blame = lambda _error: None


def counted_stall() -> None:
    """A stall of PostgreSQL is not noticed, and processes that have lost their leases in it notice this late."""
    Outage.timed = lambda _self: nullcontext()  # type: ignore[method-assign]
    renew = processes.renew

    def renew_slowly(connection: Connection, process_id: int, lease: timedelta) -> bool:
        is_renewed = renew(connection, process_id, lease)
        time.sleep(0 if is_renewed else SLOW_SECONDS)
        return is_renewed

    processes.renew = renew_slowly


def working_child() -> None:
    """The forked child of a job continues as a copy of the worker, with the worker's connections."""
    forks.begin = lambda: None


def kept_session() -> None:
    """A connection goes back to the pool with the job's changes of its session."""
    WatchedConnection.is_clean = True  # type: ignore[assignment,method-assign]


def undivided_batch() -> None:
    """A batch of successes is recorded as a whole, or not at all."""

    def record_whole(self: Completions, batch: Sequence[Completion]) -> list[Exception]:
        recorded = self._record(batch) if batch else set()
        for completion in batch:
            self._tell(completion, State.SUCCEEDED if completion.lease.run_id in recorded else LOST)
        return []

    Completions._record_apart = record_whole  # type: ignore[method-assign]


def unbounded_pass() -> None:
    """A pass sends all due runs, run by run and queue by queue."""

    def take_one(connection: Connection, queue: str, names: Sequence[str]) -> Sequence[OutgoingRun]:
        for urgent in shares.due_urgent(connection, names).get(queue, ()):
            if first := shares.take_urgent(connection, queue, urgent, batch=1):
                return first
        return shares.take(connection, queue, names, shares.Turns(), batch=1)

    def send_all(connection: Connection, jobs: Collection[str], carrier: DispatchCarrier, *_: object) -> int:
        sent = 0
        for queue, names in due.due_lanes(connection, jobs).items():
            while outgoing := take_one(connection, queue, names):
                sending.send(connection, carrier, outgoing)
                sent += len(outgoing)
        return sent

    sending.send_due = send_all


PLANTS = {
    plant.name: plant
    for plant in [
        Plant("unfenced-commit", unfenced_commit, frozenset({"unfenced", "doubled"})),
        Plant("lost-retry", lost_retry, frozenset({"retry dropped"})),
        Plant("swallowed-failure", swallowed_failure, frozenset({"stuck"})),
        Plant("claim-without-lock", claim_without_lock, frozenset({"overlap"})),
        Plant("slot-twice", slot_twice, frozenset({"slot doubled"}), schema="DROP INDEX rota_runs_slot"),
        Plant("forgotten-lease", forgotten_lease, frozenset({"stuck"})),
        Plant("two-commits", two_commits, frozenset({"torn"})),
        Plant("dropped-message", dropped_message, frozenset({"stuck"})),
        Plant("charged-refusal", charged_refusal, frozenset({"charged"}), faults=(REFUSED,)),
        Plant("counted-stall", counted_stall, frozenset({"charged"}), faults=(STALLED,)),
        Plant("working-child", working_child, frozenset({"child"})),
        Plant("kept-session", kept_session, frozenset({"unclean"})),
        Plant("undivided-batch", undivided_batch, frozenset({"stuck"})),
        Plant("unbounded-pass", unbounded_pass, frozenset({"crowded out"}), faults=(CROWDED,)),
        *FLOW_PLANTS,
    ]
}


def planted(names: str) -> list[Plant]:
    """Return the plants with these names, which are separated by commas."""
    return [PLANTS[name] for name in names.split(",") if name]


def install() -> None:
    """Install the plants that the environment variable names."""
    for plant in planted(os.environ.get(PLANT, "")):
        plant.plant()
