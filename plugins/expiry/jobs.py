"""The four jobs of expiry, with their schedules and their retries."""

from datetime import timedelta

from core import JobDefaults, Run, every
from plugins.expiry import coupons, invitation_codes, points, tasks

job = JobDefaults(queue="expiry", max_retries=3, retry_delay=timedelta(seconds=60))


@job("cancel-expired-tasks", schedule=every(seconds=60))
def cancel_expired_tasks(run: Run) -> dict[str, int]:
    """Cancel open tasks whose deadline has passed, and tell their owners."""
    return tasks.cancel_expired(run.session, run.now, checkpoint=run.checkpoint)


@job("check-expired-coupons", schedule=every(minutes=15))
def check_expired_coupons(run: Run) -> dict[str, int]:
    """Mark coupons whose end has passed as expired."""
    return coupons.expire(run.session, run.now, checkpoint=run.checkpoint)


@job("check-expired-invitation-codes", schedule=every(minutes=15))
def check_expired_invitation_codes(run: Run) -> dict[str, int]:
    """Mark invitation codes whose end has passed as expired."""
    return invitation_codes.expire(run.session, run.now, checkpoint=run.checkpoint)


@job("check-expired-points", schedule=every(hours=1))
def check_expired_points(run: Run) -> dict[str, int]:
    """Expire point lots whose date has passed, and subtract their remaining points from the balances."""
    return points.expire(run.session, run.now, checkpoint=run.checkpoint)
