"""The jobs of mail, with their schedules and their retries."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from core import Job, JobDefaults, Keyed, Limit, Run, Subject, cron, enqueue_many, every, sync_schedules
from plugins.mail import deletion, polls, store_check
from plugins.mail.accounts import DELETE, POLL, wanted_schedules
from plugins.mail.deletion import ONE_AT_A_TIME
from plugins.mail.errors import LoginGivenUp
from plugins.mail.models import Message
from plugins.mail.polls import PROCESS
from plugins.mail.processing import ATTEMPTS, Processing
from plugins.mail.settings import MailSettings
from plugins.mail.store import Store, open_store

CHECK_ACCOUNT = "check-mail-account"

job = JobDefaults(queue="mail", max_retries=3, retry_delay=timedelta(seconds=60))
#: This job has a queue of its own, so that servers that answer polls slowly do not delay messages.
processing_job = JobDefaults(queue="mail_process", max_retries=3, retry_delay=timedelta(seconds=60))


@job(
    POLL,
    # A thousand mailboxes have a million polls a day that find nothing: these are kept for an hour.
    keyed=Keyed(timedelta(seconds=10), timedelta(days=1), every(seconds=60), backoff_after=3, keep="failures"),
    dead_on=(LoginGivenUp,),
    soft_limit=timedelta(minutes=10),
    hard_limit=timedelta(minutes=12),
)
def poll_mailbox(run: Run, account_id: int, host: str) -> dict[str, Any] | None:
    """Fetch the new messages of a mailbox, and store each of them once. Return None if there are none."""
    return polls.poll(run, account_id)


@job("sync-mailboxes", schedule=cron("23 4 * * *", tz="UTC"))
def sync_mailboxes(run: Run) -> dict[str, int]:
    """Give each account its schedule, if the schedule is missing or differs."""
    synced = sync_schedules(run.session, POLL, wanted_schedules(run.session))
    return {"added": synced.added, "changed": synced.changed, "removed": synced.removed, "kept": synced.kept}


def store() -> Store:
    """Return the store of ROTA_MAIL_STORE. Raises StoreAddressError if it is not set."""
    return open_store(MailSettings.current().store)


@processing_job(PROCESS, subject=Subject(Message.__tablename__, "message_id"), overlap="wait", max_retries=ATTEMPTS - 1)
def process_email(run: Run, message_id: int) -> dict[str, int]:
    """Read a stored message, record its content, and request the jobs that process it further."""
    settings = MailSettings.current()

    def request(name: str, message_id: int) -> None:
        run.enqueue(name, key=str(message_id), args={"message_id": message_id})

    processing = Processing(run.session, store(), run.now, run.checkpoint, settings.jobs_after, request)
    return processing.process(message_id)


@processing_job(DELETE, limits=[ONE_AT_A_TIME], overlap="wait", max_retries=10)
def delete_mail_account(run: Run, account_id: int) -> dict[str, int]:
    """Delete the objects, the messages and the row of an account that is being deleted."""
    return deletion.delete_account(run.session, account_id, store(), checkpoint=run.checkpoint)


@processing_job("check-mail-store", schedule=cron("15 4 * * sun", tz="Europe/London"))
def check_mail_store(run: Run) -> dict[str, int]:
    """Request a comparison of objects and messages for each account, if there is a store."""
    if MailSettings.current().store is None:
        return {"accounts": 0}
    account_ids = store_check.accounts_to_check(run.session, store(), checkpoint=run.checkpoint)
    args = [{"account_id": account_id} for account_id in account_ids]
    enqueue_many(run.session, CHECK_ACCOUNT, args, keys=map(str, account_ids))
    return {"accounts": len(account_ids)}


@processing_job(CHECK_ACCOUNT, limits=[ONE_AT_A_TIME], overlap="wait")
def check_mail_account(run: Run, account_id: int) -> dict[str, int]:
    """Delete objects of an account that belong to no message, and report messages without an object."""

    def request(message_id: int) -> None:
        run.enqueue(PROCESS, key=str(message_id), args={"message_id": message_id}, unless="waiting")

    check = store_check.StoreCheck(run.session, account_id, store(), run.now, run.checkpoint, request)
    return check.run()


def polling(settings: MailSettings) -> Job:
    """Return the job that polls, with the limit per host of ``settings``."""
    return replace(poll_mailbox, limits=(Limit("imap:{host}", at_once=settings.polls_per_host), ONE_AT_A_TIME))
