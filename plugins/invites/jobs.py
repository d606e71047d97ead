"""The jobs of invites that do not talk to the gateway, with their schedules and their retries."""

from datetime import timedelta

from core import JobDefaults, Run, every
from plugins.invites import counters
from plugins.invites.consuming import consume
from plugins.invites.counting import sync_counts
from plugins.invites.expired import remove_expired
from plugins.invites.pools import CONSUME

job = JobDefaults(queue="invites", max_retries=3, retry_delay=timedelta(seconds=60))


@job(CONSUME, schedule=every(seconds=60), priority=5)
def consume_waiting_queue(run: Run, pool: str | None = None) -> dict[str, int]:
    """Give free seats to those who wait, in order: of one pool, or of all pools."""
    return consume(run.session, run.now, pool, checkpoint=run.checkpoint)


@job("cleanup-expired-users", schedule=every(hours=1))
def cleanup_expired_users(run: Run) -> dict[str, int]:
    """Remove the members whose time is up. Their seats are free when the gateway has confirmed it."""
    return remove_expired(run.session, run.now, checkpoint=run.checkpoint)


@job("sync-redemption-counts", schedule=every(seconds=60))
def sync_redemption_counts(run: Run) -> dict[str, int]:
    """Add the redemptions that were counted in Redis to the codes, each once, and correct wrong counters."""
    counts = sync_counts(run.session, counters.client(), run.now, checkpoint=run.checkpoint)
    if counts["corrected"]:
        run.log.warning("redemptions.corrected", **counts)
    return counts
