"""Sends what is due, and sends again what got lost on the way."""

import logging
from collections.abc import Collection, Sequence

import redis
from sqlalchemy import Connection

from core.ledger import due
from core.ledger.carrier import DispatchCarrier, OutgoingRun

logger = logging.getLogger(__name__)

#: How many runs are taken from the ledger and put on Redis at once.
BATCH = 500


def send_due(connection: Connection, jobs: Collection[str], carrier: DispatchCarrier) -> int:
    """Send all that is due of ``jobs``, batch by batch, until nothing is or Redis is away; return how many runs.

    Where workers take runs straight from the ledger, there is nothing to send.
    """
    sent = 0
    if not carrier.carries:
        return sent
    while outgoing := due.take_due(connection, jobs, batch=BATCH):
        if not send(connection, carrier, outgoing):
            break
        sent += len(outgoing)
        if len(outgoing) < BATCH:
            break
    return sent


def send(connection: Connection, carrier: DispatchCarrier, outgoing: Sequence[OutgoingRun]) -> bool:
    """Send ``outgoing``; if Redis is away, leave them to a later pass and say so."""
    if not outgoing:
        return True
    try:
        carrier.send(outgoing)
    except redis.RedisError as error:
        due.release(connection, outgoing)
        logger.warning("dispatcher.not_sent runs=%s: %s", len(outgoing), error)
        return False
    return True


def find_lost(connection: Connection, carrier: DispatchCarrier, age_seconds: float) -> int:
    """Have runs sent again whose messages have left their queue while nobody has claimed them; return how many."""
    lost = 0
    if not carrier.carries:
        return lost
    for queue in due.overdue_queues(connection, age_seconds):
        try:
            is_waiting, run_id = carrier.oldest_run(queue)
        except redis.RedisError:
            return lost
        if is_waiting and run_id is None:
            continue
        lost += due.forget_sent(connection, queue, oldest_waiting=run_id, age_seconds=age_seconds)
    if lost:
        logger.info("dispatcher.sending_again runs=%s", lost)
    return lost
