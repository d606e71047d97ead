"""Takes messages of runs back from queues that are too long, so that runs with other keys get their turn.

A process that requests many runs sends their messages at once, although the workers may need long for them. A run with
another key that is requested later would wait behind all these messages. So the dispatcher takes most of the messages
back. Their runs then wait in the ledger, where keys take turns. The messages stay if all of them have one key, or if
they have many keys with few messages each: then no key delays the others.
"""

import time
from collections import Counter
from collections.abc import Collection, Sequence

import redis
from sqlalchemy import Connection

from core.dispatcher.windows import Windows
from core.ledger import due, shares
from core.ledger.carrier import DispatchCarrier
from core.observability.events import DispatcherRecalled, emit

#: This many messages are taken back at a time. Before that, this many of the newest messages are examined.
BATCH = 1000
#: A key crowds a queue if at least this part of the oldest messages have the key.
CROWDED = 0.1
#: Taking messages back may last this many seconds before other steps have their turn.
SLICE_SECONDS = 0.5


def recall(
    connection: Connection,
    carrier: DispatchCarrier,
    windows: Windows,
    queues: Sequence[str],
    jobs: Collection[str],
    *,
    seconds: float = SLICE_SECONDS,
) -> int:
    """Take back messages of those ``queues`` that are too long, for about ``seconds``.

    ``jobs`` are the jobs whose runs are sent. If PostgreSQL fails after a message was removed, its run later counts as
    lost and is sent again.
    """
    if not carrier.carries:
        return 0
    ends_at, count = time.monotonic() + seconds, 0
    try:
        excesses = windows.excess(carrier, queues)
        lanes = due.due_lanes(connection, jobs) if excesses else {}
        for queue, excess in excesses.items():
            if not is_crowded(connection, carrier, queue, lanes.get(queue, ())):
                continue
            if taken := recall_from(connection, carrier, queue, excess, ends_at):
                emit(DispatcherRecalled(queue, taken))
                count += taken
    except redis.RedisError:  # a later pass can take the messages back
        return count
    return count


def is_crowded(connection: Connection, carrier: DispatchCarrier, queue: str, due_jobs: Sequence[str]) -> bool:
    """Return whether a few keys have many of the oldest messages of ``queue``, while runs of other keys wait.

    Other keys wait if they have some of the newest messages, or runs of ``due_jobs`` in the ledger. The runs of a job
    that have no key count as one key.
    """
    oldest, newest = carrier.oldest_runs(queue)[1], carrier.newest_runs(queue, BATCH)
    tenants = shares.tenants(connection, {*oldest, *newest})
    counts = Counter(tenants[each] for each in oldest if each in tenants)
    crowding = {tenant for tenant, count in counts.items() if count >= CROWDED * counts.total()}
    if not crowding:
        return False
    others = {tenants[each] for each in newest if each in tenants} - crowding
    return bool(others or shares.waiting_tenants(connection, queue, due_jobs, most=len(crowding) + 1) - crowding)


def recall_from(connection: Connection, carrier: DispatchCarrier, queue: str, excess: int, ends_at: float) -> int:
    """Take back up to ``excess`` messages of one queue. Return how many."""
    count = 0
    while count < excess and time.monotonic() < ends_at:
        run_ids = carrier.take_back(queue, min(excess - count, BATCH))
        if not run_ids:
            break
        due.release_unlocked(connection, run_ids)
        count += len(run_ids)
    return count
