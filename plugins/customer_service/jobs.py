"""The four jobs of customer service: what runs, when, and how often it may fail."""

from datetime import timedelta

from core import Run, cron, every, job
from plugins.customer_service.archive import archive_inactive_chats, remove_left_entries
from plugins.customer_service.assignment import assign_waiting_users
from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import end_quiet_chats
from plugins.customer_service.triggers import ASSIGNMENT_JOB

QUEUE = "customer_service"


@job(
    ASSIGNMENT_JOB,
    queue=QUEUE,
    schedule=every(seconds=30),
    max_retries=3,
    retry_delay=timedelta(seconds=30),
    overlap="allow",  # a trigger must not be dropped because another run is at work; see assignment.py
)
def process_customer_service_queue(run: Run) -> dict[str, int]:
    """Give waiting users to agents, oldest first, until nobody can be placed."""
    return {"assigned": assign_waiting_users(run.session, run.now, checkpoint=run.checkpoint)}


@job(
    "auto-end-timeout-chats",
    queue=QUEUE,
    schedule=every(seconds=30),
    max_retries=3,
    retry_delay=timedelta(seconds=30),
)
def auto_end_timeout_chats(run: Run) -> dict[str, int]:
    """End chats with no activity for 2 minutes."""
    return {"ended": end_quiet_chats(run.session, run.now, checkpoint=run.checkpoint)}


@job(
    "send-timeout-warnings",
    queue=QUEUE,
    schedule=every(seconds=30),
    max_retries=3,
    retry_delay=timedelta(seconds=30),
)
def send_timeout_warnings(run: Run) -> dict[str, int]:
    """Warn both sides of a quiet chat one minute before it times out."""
    return {"warned": warn_quiet_chats(run.session, run.now, checkpoint=run.checkpoint)}


@job(
    "cleanup-long-inactive-chats",
    queue=QUEUE,
    schedule=cron("0 3 * * *", tz="Europe/London"),
    max_retries=2,
    retry_delay=timedelta(seconds=300),
)
def cleanup_long_inactive_chats(run: Run) -> dict[str, int]:
    """Archive and remove chats inactive for 30 days."""
    counts = archive_inactive_chats(run.session, run.now, checkpoint=run.checkpoint)
    left = remove_left_entries(run.session, run.now, checkpoint=run.checkpoint)
    return counts | {"left_entries_removed": left}
