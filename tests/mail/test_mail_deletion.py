"""``delete-mail-account``: no data of an account remain, even if the account was deleted during its poll."""

import io
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session
from stored_mail import HELLO, NOON

from core import Run, enqueue, job
from core import database as databases
from core.ledger import processes, releases
from core.ledger.processes import Identity
from core.testing import LONG_LEASE, Member
from core.worker.executor import Executor
from core.worker.membership import application_name, process_name
from plugins.mail import deletion
from plugins.mail.jobs import delete_mail_account, process_email
from plugins.mail.models import Account, Deletion, Folder
from plugins.mail.store import message_key
from tests.support.eventually import eventually


def delete(run_job, account_id: int):
    return run_job(delete_mail_account, key=str(account_id), args={"account_id": account_id}, now=NOON)


def test_nothing_of_the_account_remains_and_others_are_untouched(stored_mail, run_job):
    account, other = stored_mail.account(), stored_mail.account("other")
    for uid in range(1, 6):
        stored_mail.message(account, uid)
    processed = stored_mail.message(account, 6)
    kept = stored_mail.message(other, 1)
    run_job(process_email, args={"message_id": processed})
    stored_mail.message(account, 7, content=None, storage_key=None, state="too_big")
    with stored_mail.engine.begin() as connection:
        connection.execute(insert(Deletion).values(storage_key=message_key(account, 1, 1, 99)))
    stored_mail.change(account, state="deleting")

    run = delete(run_job, account)

    assert run.result == {"messages": 7, "objects": 0, "accounts": 1}
    assert stored_mail.find(Account, account) is None
    assert stored_mail.find(Folder, (account, "INBOX")) is None
    assert stored_mail.find(Deletion, message_key(account, 1, 1, 99)) is None
    assert stored_mail.contents() == []
    assert stored_mail.messages() == [(kept, "stored")]
    assert stored_mail.keys() == [message_key(other, 1, 1, 1)]


def test_objects_without_rows_go_too(stored_mail, run_job):
    account = stored_mail.account()
    stored_mail.store.put(message_key(account, 1, 1, 1), io.BytesIO(HELLO))
    stored_mail.store.put(message_key(account, 2, 1, 1), io.BytesIO(HELLO))
    stored_mail.change(account, state="deleting")

    assert delete(run_job, account).result == {"messages": 0, "objects": 2, "accounts": 1}
    assert stored_mail.keys() == []


def test_more_than_one_batch_is_deleted(stored_mail, run_job, monkeypatch):
    monkeypatch.setattr(deletion, "BATCH", 3)
    account = stored_mail.account()
    for uid in range(10):
        stored_mail.message(account, uid + 1)
        stored_mail.store.put(message_key(account, 2, 1, uid + 1), io.BytesIO(HELLO))
    stored_mail.change(account, state="deleting")

    assert delete(run_job, account).result == {"messages": 10, "objects": 10, "accounts": 1}
    assert stored_mail.keys() == []


def test_an_account_that_is_not_being_deleted_is_left_alone(stored_mail, run_job):
    account = stored_mail.account()
    stored_mail.message(account, 1)

    assert delete(run_job, account).result == {"messages": 0, "objects": 0, "accounts": 0}
    assert len(stored_mail.keys()) == 1


def test_an_account_that_is_gone_is_no_error(stored_mail, run_job):
    assert delete(run_job, 12345).state == "succeeded"


def test_after_a_failure_of_the_store_the_rest_is_deleted(stored_mail, executor, run_job):
    account = stored_mail.account()
    message_id = stored_mail.message(account, 1)
    stored_mail.change(account, state="deleting")
    root = stored_mail.store.root
    root.rename(root.with_name("unmounted"))

    run = delete(run_job, account)
    assert run.state == "retrying"
    assert stored_mail.messages() == [(message_id, "stored")]
    root.with_name("unmounted").rename(root)

    assert delete(run_job, account).state != "dead"


@job("poll", queue="mail", limits=[deletion.ONE_AT_A_TIME])
def poll(run: Run, account_id: int) -> None:
    """Do what the test has put into ``DURING``, under the limit of a real poll."""
    DURING.pop()(account_id)


#: What the next run of ``poll`` does.
DURING: list[Callable[[int], None]] = []


@pytest.fixture
def limited(database, use_jobs) -> Iterator[Executor]:
    """Return the executor of a process that declares both jobs, so that their limit applies."""
    release = releases.of(use_jobs(poll, delete_mail_account))
    with databases.dedicated(database) as connection:
        releases.record(connection, release)
        identity = Identity("worker", process_name(), application_name(), release=release.fingerprint)
        yield Executor(database, Member(processes.register(connection, identity, LONG_LEASE)), process_name())


def test_a_poll_that_is_at_work_ends_before_its_objects_are_deleted(stored_mail, run_job, limited):
    """The object that the poll stores at its end is deleted as well."""
    account = stored_mail.account()
    stored_mail.change(account, state="deleting")

    def request(name: str) -> int:
        with Session(stored_mail.engine) as session, session.begin():
            return enqueue(session, name, args={"account_id": account})

    refused = []

    def delete_and_store(account_id: int) -> None:
        refused.append(limited.execute(delete_mail_account, deleting))
        stored_mail.store.put(message_key(account_id, 1, 1, 1), io.BytesIO(HELLO))

    polling, deleting = request("poll"), request("delete-mail-account")
    DURING.append(delete_and_store)
    assert limited.execute(poll, polling) == "succeeded", run_job.row(polling).error

    assert refused == ["limited"]
    assert (run_job.row(deleting).state, run_job.row(deleting).reason) == ("queued", "limit")
    assert len(stored_mail.keys()) == 1

    def delete() -> bool:
        limited.execute(delete_mail_account, deleting)
        return run_job.row(deleting).state == "succeeded"

    eventually(delete)
    assert stored_mail.keys() == []
    assert stored_mail.find(Account, account) is None
