"""The steps of one run of ``sync-redemption-counts``; see ``counters.py`` for why they are safe."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core import Checkpoint, require_aware
from plugins.invites import counters
from plugins.invites.counters import SETTLED, Client, Differing


def sync_counts(session: Session, redis: Client, now: datetime, *, checkpoint: Checkpoint) -> dict[str, int]:
    """Add the batch that an earlier run has taken, take the next one, and correct wrong counters. Return the numbers.

    The result has the sum of the counts that were added, how many codes were corrected, and the sum of the differences
    by which counters were too small (``missing``) or too large (``surplus``). Raises NaiveTime.
    """
    require_aware(now=now)
    counts = {**add_counts(session, redis, now, checkpoint=checkpoint), "corrected": 0, "missing": 0, "surplus": 0}
    for wrong in correct_counts(session, redis, now):
        counts["corrected"] += 1
        counts["missing"] += max(wrong.redeemed - wrong.counted, 0)
        counts["surplus"] += max(wrong.counted - wrong.redeemed, 0)
    counters.prune(session, now)
    return counts


def add_counts(
    session: Session, redis: Client, now: datetime, *, checkpoint: Checkpoint, settled: timedelta = SETTLED
) -> dict[str, int]:
    """Add the pending batch to the codes if it has been pending for ``settled``, and take the next one."""
    counts = {"added": 0, "unreadable": 0}
    taken = counters.take(redis)
    if taken is None or taken.age < settled:
        return counts
    counts = {"added": counters.add(session, taken, now), "unreadable": taken.unreadable}
    checkpoint(counts)  # the batch is deleted only after its commit
    counters.forget(redis, taken.batch)
    counters.take(redis)
    return counts


def correct_counts(session: Session, redis: Client, now: datetime) -> list[Differing]:
    """Correct the counters of codes that are not in use at the moment. Return those that were wrong."""
    in_use = counters.in_redis(redis)
    wrong = [each for each in counters.differing(session, now) if each.code_id not in in_use]
    return [each for each in wrong if counters.correct(session, each)]
