"""Notices dead processes and hands on what they had."""

import logging
import time
from collections.abc import Iterable

import redis
from sqlalchemy import Connection

from core import metrics
from core.ledger import processes
from core.ledger.outbox import DispatchCarrier

#: What a process whose connection was cut takes to be there on another, generously. A death is noticed that much later.
COME_BACK_SECONDS = 0.5

logger = logging.getLogger(__name__)


def recover(connection: Connection, carrier: DispatchCarrier, max_crashes: int) -> None:
    """End the leases of dead processes, hand their runs on, and put back the messages they had fetched.

    One that has just lost its lock is given a moment to come back.
    """
    if processes.misses_any(connection):
        time.sleep(COME_BACK_SECONDS)
    for dead in processes.reap(connection):
        metrics.reaped(dead.kind)
        logger.warning("process.reaped kind=%s id=%s name=%s: it died or fell silent", dead.kind, dead.id, dead.name)
        if dead.broker_id:
            put_back(carrier, dead.broker_id, dead.queues)
    for run in processes.hand_on(connection, max_crashes):
        metrics.run_ended(run.job, run.state)
        logger.warning("run.handed_on job=%s run=%s attempt=%s state=%s", run.job, run.run_id, run.attempt, run.state)


def put_back(carrier: DispatchCarrier, broker_id: str, queues: Iterable[str]) -> None:
    """Put a dead process's messages back on their queues; without Redis there is nothing to put back."""
    try:
        carrier.recover(broker_id, queues)
    except redis.RedisError as error:
        logger.warning("dispatcher.not_put_back: %s", error)
