"""Sends due runs, with a share for each queue, and sends lost runs again."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import redis
from sqlalchemy import Connection

from core.dispatcher.windows import Windows
from core.ledger import due, shares
from core.ledger.carrier import DispatchCarrier, OutgoingRun
from core.ledger.shares import Due, Turns
from core.observability.events import DispatcherNotSent, DispatcherSentAgain, emit

#: The number of runs that one turn takes from the ledger and sends to Redis, for all queues together.
BATCH = 500
#: The smallest share of one queue in a turn, however many queues have due runs.
LEAST_SHARE = 20
#: Sending, and the search for lost runs, each take this many seconds before other steps have their turn.
SLICE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Sharing:
    """The state between calls of ``send_due``: the keys and jobs that had their turns, and the windows of the
    queues.
    """

    turns: Turns = field(default_factory=Turns)
    #: How many messages may wait on each queue; None for no limit.
    windows: Windows | None = None


def send_due(
    connection: Connection,
    jobs: Collection[str],
    carrier: DispatchCarrier,
    sharing: Sharing | None = None,
    *,
    seconds: float = SLICE_SECONDS,
) -> int:
    """Send due runs of ``jobs`` for about ``seconds``, where the queues take turns. Return how many runs were sent.

    Sending ends earlier if no more runs are due, if the windows of their queues are full, or if Redis is away. Nothing
    is sent while workers take runs directly from the ledger.
    """
    sharing = sharing or Sharing()
    if sharing.windows is not None:
        sharing.windows.begin()
    sent, ends_at = 0, time.monotonic() + seconds
    while carrier.carries and (lanes := due.due_lanes(connection, jobs)):
        turn, is_sent = send_turn(connection, lanes, carrier, sharing)
        sent += turn
        if not turn or not is_sent or time.monotonic() >= ends_at:
            break
    return sent


def send_turn(
    connection: Connection, lanes: Mapping[str, Sequence[str]], carrier: DispatchCarrier, sharing: Sharing
) -> tuple[int, bool]:
    """Send the share of each queue. Return the number of sent runs, and whether Redis was available throughout."""
    share, sent = max(BATCH // len(lanes), LEAST_SHARE), 0
    urgent = shares.due_urgent(connection, {job for jobs in lanes.values() for job in jobs})
    try:
        for queue, jobs in lanes.items():
            for outgoing in taken(connection, queue, jobs, urgent.get(queue, ()), carrier, sharing, share):
                if not send(connection, carrier, outgoing):
                    return sent, False
                sent += len(outgoing)
    except redis.RedisError:  # the room of a queue is unknown without Redis
        return sent, False
    return sent, True


def taken(
    connection: Connection,
    queue: str,
    jobs: Sequence[str],
    urgent: Sequence[Due],
    carrier: DispatchCarrier,
    sharing: Sharing,
    share: int,
) -> Iterator[list[OutgoingRun]]:
    """Yield the runs of a queue's share, as far as the queue has room: first runs with a priority, then the other
    runs.
    """
    windows = sharing.windows
    for each in urgent:
        room = share if windows is None else windows.urgent_room(carrier, queue, each.priority)
        if not room:
            break
        yield shares.take_urgent(connection, queue, each, batch=min(share, room))
    room = share if windows is None else windows.room(carrier, queue)
    if room:
        batch = min(share, room)
        outgoing = shares.take(connection, queue, jobs, sharing.turns, batch=batch)
        yield outgoing
        if windows is not None:
            windows.sent(carrier, queue, has_more=len(outgoing) >= batch)


def send(connection: Connection, carrier: DispatchCarrier, outgoing: Sequence[OutgoingRun]) -> bool:
    """Send ``outgoing``. If Redis is away, leave the runs to a later pass and return False."""
    if not outgoing:
        return True
    try:
        carrier.send(outgoing)
    except redis.RedisError as error:
        due.release(connection, outgoing)
        emit(DispatcherNotSent(len(outgoing), str(error)))
        return False
    return True


def find_lost(
    connection: Connection, carrier: DispatchCarrier, age_seconds: float, *, seconds: float = SLICE_SECONDS
) -> int:
    """Mark runs whose messages have left their queue without a claim, so that they are sent again. Return how many.

    The search ends after about ``seconds``. The next call finds the remaining runs.
    """
    if not carrier.carries:
        return 0
    ends_at = time.monotonic() + seconds
    lost = find_lost_urgent(connection, carrier, age_seconds)
    overdue = due.overdue_lanes(connection, age_seconds)
    while overdue:
        found = {queue: forget_lost(connection, carrier, queue, jobs, age_seconds) for queue, jobs in overdue.items()}
        lost += sum(found.values())
        overdue = {queue: jobs for queue, jobs in overdue.items() if found[queue]}
        if time.monotonic() >= ends_at:
            break
    if lost:
        emit(DispatcherSentAgain(lost))
    return lost


def find_lost_urgent(connection: Connection, carrier: DispatchCarrier, age_seconds: float) -> int:
    """Mark a batch of lost runs of each queue and priority, so that they are sent again. Return how many.

    If all workers of a queue are of the previous release, move the queue's urgent messages to the list of messages
    without a priority.
    """
    overdue = due.overdue_urgent_lanes(connection, age_seconds)
    former = {queue for queue, _ in overdue if due.is_served_by_former(connection, queue)}
    for queue in former:
        demote(carrier, queue)
    return sum(
        forget_lost(
            connection, carrier, queue, jobs, age_seconds, priority=priority, is_in_list=queue in former
        )
        for (queue, priority), jobs in overdue.items()
    )  # fmt: skip


def demote(carrier: DispatchCarrier, queue: str) -> None:
    """Move the urgent messages of ``queue`` to the list of messages without a priority. Do nothing without Redis."""
    with suppress(redis.RedisError):
        carrier.demote(queue)


def forget_lost(
    connection: Connection,
    carrier: DispatchCarrier,
    queue: str,
    jobs: Sequence[str],
    age_seconds: float,
    *,
    priority: int = 0,
    is_in_list: bool = True,
) -> int:
    """Mark a batch of lost runs of one queue and priority, so that they are sent again.

    Return how many runs were marked. Without Redis, mark none.

    ``is_in_list`` is true if the messages are in the queue's list, and false if they are in its sorted set of urgent
    messages.
    """
    try:
        is_waiting, run_ids = carrier.oldest_runs(queue) if is_in_list else carrier.oldest_urgent_runs(queue, priority)
    except redis.RedisError:
        return 0
    if is_waiting and not run_ids:
        return 0
    return due.forget_sent(connection, queue, jobs, waiting=run_ids, age_seconds=age_seconds, priority=priority)
