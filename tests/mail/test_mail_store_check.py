"""``check-mail-store`` finds objects without messages and messages without objects, and repairs them if possible."""

import io
import os
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text
from stored_mail import HELLO

from plugins.mail import store_check
from plugins.mail.jobs import check_mail_account, check_mail_store
from plugins.mail.models import Deletion
from plugins.mail.store import message_key

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=3)


@pytest.fixture
def account(stored_mail) -> int:
    return stored_mail.account()


def check(run_job, account_id: int) -> dict[str, int]:
    run = run_job(check_mail_account, key=str(account_id), args={"account_id": account_id}, now=NOW)
    assert run.state == "succeeded", run.error
    return run.result


def put(stored_mail, key: str, *, at: datetime = LONG_AGO) -> None:
    stored_mail.store.put(key, io.BytesIO(HELLO))
    os.utime(stored_mail.store.root / key, (at.timestamp(), at.timestamp()))


def requested(stored_mail) -> list[str]:
    with stored_mail.engine.connect() as connection:
        return list(connection.scalars(text("SELECT key FROM rota_runs WHERE job = 'process-email' ORDER BY key")))


def test_what_matches_is_left_alone(stored_mail, run_job, account):
    stored_mail.message(account, 1)
    stored_mail.message(account, 2, content=None, storage_key=None, state="gone")

    assert check(run_job, account) == {"objects": 1, "orphans_deleted": 0, "without_object": 0, "requested_again": 0}


def test_an_object_without_a_message_is_deleted_once_it_is_old(stored_mail, run_job, account):
    stored_mail.message(account, 1)
    put(stored_mail, message_key(account, 1, 1, 2))
    put(stored_mail, message_key(account, 1, 1, 3), at=NOW - store_check.GRACE + timedelta(minutes=1))

    assert check(run_job, account)["orphans_deleted"] == 1
    assert stored_mail.keys() == [message_key(account, 1, 1, 1), message_key(account, 1, 1, 3)]


def test_what_a_crash_left_half_written_is_deleted(stored_mail, run_job, account):
    put(stored_mail, message_key(account, 1, 1, 2))
    name = stored_mail.store.root / message_key(account, 1, 1, 2)
    name.rename(name.with_name(".2.eml.0123456789abcdef"))

    assert check(run_job, account)["orphans_deleted"] == 1
    assert list(stored_mail.store.root.iterdir()) == []


def test_objects_of_another_account_are_not_looked_at(stored_mail, run_job, account):
    put(stored_mail, message_key(account + 1, 1, 1, 1))
    put(stored_mail, message_key(int(f"{account}0"), 1, 1, 1))

    assert check(run_job, account)["objects"] == 0
    assert len(stored_mail.keys()) == 2


def test_a_message_without_its_object_is_named_in_the_log(stored_mail, run_job, account, caplog):
    there, missing = stored_mail.message(account, 1), stored_mail.message(account, 2, content=None)

    assert check(run_job, account)["without_object"] == 1
    assert f"account={account} messages=[{missing}]" in caplog.text
    assert stored_mail.messages() == [(there, "stored"), (missing, "stored")]


def test_more_than_one_batch_is_compared(stored_mail, run_job, account, monkeypatch):
    monkeypatch.setattr(store_check, "BATCH", 3)
    for uid in range(1, 11):
        stored_mail.message(account, uid, content=HELLO if uid % 2 else None)
        put(stored_mail, message_key(account, 2, 1, uid))

    found = check(run_job, account)

    assert (found["objects"], found["orphans_deleted"], found["without_object"]) == (15, 10, 5)


def test_objects_whose_deletion_was_asked_for_are_deleted(stored_mail, run_job, account):
    key = message_key(account, 1, 1, 1)
    put(stored_mail, key, at=NOW)
    with stored_mail.engine.begin() as connection:
        connection.execute(insert(Deletion).values(storage_key=key))

    check(run_job, account)

    assert stored_mail.keys() == []
    assert stored_mail.find(Deletion, key) is None


def test_a_message_that_has_waited_for_too_long_is_requested_again_and_once(stored_mail, run_job, account):
    waiting = stored_mail.message(account, 1, created_at=LONG_AGO)
    stored_mail.message(account, 2)
    stored_mail.message(account, 3, created_at=LONG_AGO, state="processed")

    assert check(run_job, account)["requested_again"] == 1
    check(run_job, account)

    assert requested(stored_mail) == [str(waiting)]


def test_each_account_is_checked_and_each_that_has_left_objects(stored_mail, run_job, account):
    other = stored_mail.account("other")
    put(stored_mail, message_key(4711, 1, 1, 1))
    put(stored_mail, message_key(4711, 1, 1, 2))

    run = run_job(check_mail_store)

    assert run.result == {"accounts": 3}
    with stored_mail.engine.connect() as connection:
        keys = set(connection.scalars(text("SELECT key FROM rota_runs WHERE job = 'check-mail-account'")))
    assert keys == {str(account), str(other), "4711"}


def test_what_an_account_that_is_gone_has_left_is_deleted(stored_mail, run_job):
    put(stored_mail, message_key(4711, 1, 1, 1))

    assert check(run_job, 4711)["orphans_deleted"] == 1
    assert stored_mail.keys() == []


def test_a_store_that_is_away_deletes_nothing_and_reports_nothing(stored_mail, run_job, account, caplog):
    stored_mail.message(account, 1)
    stored_mail.store.root.rename(stored_mail.store.root.with_name("unmounted"))

    run = run_job(check_mail_account, key=str(account), args={"account_id": account}, now=NOW)

    assert run.state == "retrying"
    assert "without_object" not in caplog.text


def test_without_a_store_there_is_nothing_to_check(run_job, configure):
    configure(store="")

    assert run_job(check_mail_store).result == {"accounts": 0}
