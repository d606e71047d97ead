"""The jobs of mail: what runs, when, and how often it may fail."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from core import Job, JobDefaults, Keyed, Later, Limit, Run, cron, every, sync_schedules
from plugins.mail import polls
from plugins.mail.accounts import POLL, wanted_schedules
from plugins.mail.errors import LoginGivenUp
from plugins.mail.settings import MailSettings

A_WHILE = timedelta(minutes=10)

job = JobDefaults(queue="mail", max_retries=3, retry_delay=timedelta(seconds=60))


@job(
    POLL,
    keyed=Keyed(timedelta(seconds=10), timedelta(days=1), every(seconds=60), backoff_after=3),
    dead_on=(LoginGivenUp,),
    soft_limit=timedelta(minutes=10),
    hard_limit=timedelta(minutes=12),
)
def poll_mailbox(run: Run, account_id: int, host: str) -> dict[str, Any]:
    """Fetch the new messages of a mailbox, and store each of them once."""
    return polls.poll(run, account_id)


@job("sync-mailboxes", schedule=cron("23 4 * * *", tz="UTC"))
def sync_mailboxes(run: Run) -> dict[str, int]:
    """Give each account its schedule, if one is missing or another."""
    synced = sync_schedules(run.session, POLL, wanted_schedules(run.session))
    return {"added": synced.added, "changed": synced.changed, "removed": synced.removed, "kept": synced.kept}


@job("process-email", queue="mail_process", overlap="allow")
def process_email(run: Run, message_id: int) -> None:
    """Read a stored message; until that is part of the plugin, wait."""
    raise Later(in_=A_WHILE, reason="this release does not process messages yet")


@job("delete-mail-account", overlap="allow")
def delete_mail_account(run: Run, account_id: int) -> None:
    """Delete what an account has left; until that is part of the plugin, wait."""
    raise Later(in_=A_WHILE, reason="this release does not delete messages yet")


def polling(settings: MailSettings) -> Job:
    """The job that polls, with the limit per host of ``settings``."""
    return replace(poll_mailbox, limits=(Limit("imap:{host}", at_once=settings.polls_per_host),))
