"""The four jobs of customer service, with their schedules and their retries."""

from datetime import timedelta

from core import JobDefaults, Run, cron, every
from plugins.customer_service.archive import archive_inactive_chats, remove_left_entries
from plugins.customer_service.assignment import assign_waiting_users
from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import end_quiet_chats
from plugins.customer_service.triggers import ASSIGNMENT_JOB

job = JobDefaults(
    queue="customer_service",
    priority=5,  # people wait for these jobs
    schedule=every(seconds=30),
    max_retries=3,
    retry_delay=timedelta(seconds=30),
)


@job(ASSIGNMENT_JOB, overlap="allow")  # a trigger must not be dropped while another run is running; see assignment.py
def process_customer_service_queue(run: Run) -> dict[str, int]:
    """Assign waiting users to agents, the oldest first, until no user can be placed."""
    return assign_waiting_users(run.session, run.now, checkpoint=run.checkpoint)


@job("auto-end-timeout-chats")
def auto_end_timeout_chats(run: Run) -> dict[str, int]:
    """End chats that had no activity for 2 minutes and were warned at least a minute ago."""
    return end_quiet_chats(run.session, run.now, checkpoint=run.checkpoint)


@job("send-timeout-warnings")
def send_timeout_warnings(run: Run) -> dict[str, int]:
    """Warn both sides of a quiet chat one minute before it times out."""
    return warn_quiet_chats(run.session, run.now, checkpoint=run.checkpoint)


@job(
    "cleanup-long-inactive-chats",
    priority=0,
    schedule=cron("0 3 * * *", tz="Europe/London"),
    max_retries=2,
    retry_delay=timedelta(seconds=300),
)
def cleanup_long_inactive_chats(run: Run) -> dict[str, int]:
    """Archive and remove chats inactive for 30 days."""
    chats = archive_inactive_chats(run.session, run.now, checkpoint=run.checkpoint)
    entries = remove_left_entries(run.session, run.now, checkpoint=run.checkpoint)
    return {
        "archived": chats["archived"],
        "ended": chats["ended"],
        "left_entries_removed": entries["removed"],
        "left": chats["left"] + entries["left"],
        "broken": chats["broken"] + entries["broken"],
    }
