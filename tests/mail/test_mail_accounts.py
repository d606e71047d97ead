"""Accounts and their schedules: one transaction changes both, and each invalid part has an error text of its own."""

from collections import Counter
from datetime import timedelta

import pytest
from mail_world import Mailroom
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import schedules
from plugins.mail import (
    AccountTaken,
    BadAccount,
    UnknownAccount,
    add_account,
    change_account,
    delete_account,
    find_account,
    jobs,
    list_accounts,
    pause_account,
    resume_account,
)
from plugins.mail.models import Account

ANN = {"host": "imap.example.org", "username": "ann", "tls": "implicit", "secret": "ann"}
SECOND = timedelta(seconds=1)
OAUTH = {"auth": "client_credentials", "token_url": "https://login.example.org/token", "client_id": "rota"}


def most_in_a_second(session: Session) -> int:
    """How many accounts are polled in the same second."""
    return max(Counter(session.scalars(text("SELECT floor(phase) FROM rota_key_schedules"))).values())


def scheduled(session: Session) -> dict[str, tuple[str, int | None, dict]]:
    """Return the schedules by key, with interval, priority and arguments."""
    return {each.key: (each.spec, each.priority, dict(each.args)) for each in schedules(session, "poll-mailbox")}


def test_an_account_has_a_schedule_from_its_transaction_on(session: Session):
    account_id = add_account(session, "ann", **ANN, every=90 * SECOND, is_urgent=True)

    args = {"account_id": account_id, "host": "imap.example.org"}
    assert scheduled(session) == {str(account_id): ("every 90s", 5, args)}
    assert session.get_one(Account, account_id).port == 993
    session.rollback()
    assert (scheduled(session), list(list_accounts(session))) == ({}, [])


def test_a_new_account_is_polled_at_once(session: Session):
    account_id = add_account(session, "ann", **ANN)
    session.commit()

    run = session.execute(text("SELECT job, key, args FROM rota_runs")).one()

    assert run == ("poll-mailbox", str(account_id), {"account_id": account_id, "host": "imap.example.org"})


def test_polls_of_accounts_that_are_added_in_bulk_are_spread(session: Session):
    for number in range(120):
        add_account(session, f"user {number}", **{**ANN, "username": f"user {number}"})
    session.commit()

    assert most_in_a_second(session) <= 1.5 * 120 / 60


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"every": SECOND}, r"bad every=.*; expected whole seconds, from 10 seconds to 1 day"),
        ({"every": timedelta(days=2)}, r"bad every=.*; expected whole seconds, from 10 seconds to 1 day"),
        ({"every": 10.5 * SECOND}, r"bad every=.*; expected whole seconds, from 10 seconds to 1 day"),
        ({"name": "a\x07b"}, r"bad name='a\\x07b'; expected 1 to 100 printable characters"),
        ({"name": ""}, r"bad name=''; expected 1 to 100 printable characters"),
        ({"username": "ann\r\nA1 LOGOUT"}, r"bad username='ann\\r\\nA1 LOGOUT'; expected 1 to 1000 printable"),
        ({"host": "imap example"}, r"bad host='imap example'; expected the name or the address of a host"),
        ({"port": 0}, r"bad port=0; expected a number from 1 to 65535"),
        ({"tls": "maybe"}, r"bad tls='maybe'; expected 'implicit', 'starttls' or 'none'"),
        ({"ca_file": "ca.pem"}, r"bad ca_file='ca.pem'; expected an absolute path"),
        ({"secret": "../etc/passwd"}, r"bad secret='\.\./etc/passwd'; expected the name of a secret"),
        ({"secret": None}, r"auth='password' needs secret"),
        ({"folder": "IN\nBOX"}, r"bad folder='IN\\nBOX'; expected 1 to 1000 printable characters"),
        ({"auth": "kerberos"}, r"bad auth='kerberos'; expected 'password', 'refresh_token' or 'client_credentials'"),
        ({**OAUTH, "token_url": "http://login.example.org"}, r"bad token_url=.*; expected an address that begins with"),
        ({**OAUTH, "client_id": None}, r"auth='client_credentials' needs client_id"),
        ({**OAUTH, "auth": "refresh_token"}, r"refresh_token is for auth='refresh_token', and is needed there"),
        ({"is_urgent": "yes"}, r"bad is_urgent='yes'; expected True or False"),
    ],
)
def test_each_part_that_is_wrong_is_told(session: Session, parts, told):
    with pytest.raises(BadAccount, match=told):
        add_account(session, **{"name": "ann", **ANN, **parts})

    assert list(list_accounts(session)) == []


def test_all_that_is_wrong_is_told_at_once(session: Session):
    with pytest.raises(BadAccount, match=r"bad host='.*'; expected .*; bad port=-1; expected"):
        add_account(session, "ann", **{**ANN, "host": "a b", "port": -1})


@pytest.mark.parametrize(
    ("name", "parts", "told"),
    [
        ("ann", {"username": "bob"}, r"there is an account 'ann' already; choose another name, or change that account"),
        ("bob", {}, r"account 'ann' polls this mailbox already; change that account"),
        ("bob", {"folder": "Inbox"}, r"account 'ann' polls this mailbox already; change that account"),
        ("bob", {"host": "IMAP.Example.org"}, r"account 'ann' polls this mailbox already; change that account"),
    ],
)
def test_an_account_is_added_once(session: Session, name, parts, told):
    add_account(session, "ann", **ANN)

    with pytest.raises(AccountTaken, match=told):
        add_account(session, name, **{**ANN, **parts})

    assert len(list_accounts(session)) == len(scheduled(session)) == 1


def test_two_folders_of_a_mailbox_have_an_account_each(session: Session):
    add_account(session, "ann", **ANN)
    add_account(session, "ann, archive", **ANN, folder="Archive")

    assert [each.name for each in list_accounts(session)] == ["ann", "ann, archive"]


def test_a_change_reaches_the_schedule(session: Session):
    account_id = add_account(session, "ann", **ANN)

    assert change_account(session, account_id, every=600 * SECOND, host="mail.example.org", is_urgent=True)
    assert not change_account(session, account_id, every=600 * SECOND)

    args = {"account_id": account_id, "host": "mail.example.org"}
    assert scheduled(session) == {str(account_id): ("every 10m", 5, args)}


def test_a_change_is_checked_as_an_addition_is(session: Session):
    account_id = add_account(session, "ann", **ANN)
    add_account(session, "bob", **{**ANN, "username": "bob"})

    with pytest.raises(BadAccount, match=r"bad every="):
        change_account(session, account_id, every=SECOND)
    with pytest.raises(BadAccount, match=r"an account has no colour"):
        change_account(session, account_id, colour="red")
    with pytest.raises(AccountTaken, match=r"account 'bob' polls this mailbox already"):
        change_account(session, account_id, username="bob")
    with pytest.raises(AccountTaken, match=r"there is an account 'bob' already"):
        change_account(session, account_id, name="bob")
    with pytest.raises(UnknownAccount, match=r"unknown account 99"):
        change_account(session, 99, every=60 * SECOND)

    assert session.get_one(Account, account_id).username == "ann"


def test_a_paused_account_is_not_polled_until_it_is_resumed(mailroom: Mailroom):
    account_id = mailroom.add()
    pause_account(mailroom.session, account_id, reason="moving")
    mailroom.session.commit()

    assert mailroom.poll(account_id).result == {"skipped": "paused"}
    [found] = schedules(mailroom.session, "poll-mailbox")
    assert found.pause_reason == "moving"
    assert not change_account(mailroom.session, account_id, folder="INBOX")
    assert change_account(mailroom.session, account_id, secret="bob")
    assert mailroom.account(account_id).state == "paused"
    assert resume_account(mailroom.session, account_id)
    assert not resume_account(mailroom.session, account_id)
    mailroom.session.commit()

    [found] = schedules(mailroom.session, "poll-mailbox")
    assert found.paused_at is None
    assert mailroom.follow(account_id).state == "succeeded"


def test_a_deleted_account_has_no_schedule_and_its_name_is_free(session: Session):
    account_id = add_account(session, "ann", **ANN)

    delete_account(session, account_id)

    assert (scheduled(session), list(list_accounts(session))) == ({}, [])
    with pytest.raises(UnknownAccount):
        delete_account(session, account_id)
    with pytest.raises(UnknownAccount, match=r"unknown account 'ann'; `rota mail list` has their names"):
        find_account(session, "ann")
    assert add_account(session, "ann", **ANN) != account_id
    asked = session.execute(text("SELECT args FROM rota_runs WHERE job = 'delete-mail-account'")).scalars().all()
    assert asked == [{"account_id": account_id}]


def test_a_deletion_in_the_middle_of_a_poll_leaves_nothing_behind_it(mailroom: Mailroom, database):
    mailroom.server.inbox.fill(3)
    account_id = mailroom.add()

    def delete(command: str, arguments: str) -> None:
        if command == "FETCH" and arguments.startswith("2 (BODY"):
            with Session(database) as session, session.begin():
                delete_account(session, account_id)

    mailroom.server.script = delete
    run = mailroom.poll(account_id)

    assert (run.state, run.result["skipped"]) == ("succeeded", "changed")
    assert mailroom.states() == {1: "stored"}
    assert list(mailroom.objects()) == [each.storage_key for each in mailroom.messages()]
    assert 3 not in mailroom.server.bodies


def test_sync_gives_each_account_its_schedule(mailroom: Mailroom):
    first, second, gone = (mailroom.add(name, username=name) for name in ("ann", "bob", "eve"))
    mailroom.session.execute(text("DELETE FROM rota_key_schedules WHERE key = :key"), {"key": str(first)})
    mailroom.session.execute(text("UPDATE mail_accounts SET poll_seconds = 300 WHERE id = :id"), {"id": second})
    mailroom.session.execute(text("UPDATE mail_accounts SET state = 'deleting' WHERE id = :id"), {"id": gone})
    mailroom.session.commit()

    run = mailroom.run_job(jobs.sync_mailboxes)

    assert run.result == {"added": 1, "changed": 1, "removed": 1, "kept": 0}
    assert {key: spec for key, (spec, _, _) in scheduled(mailroom.session).items()} == {
        str(first): "every 1m",
        str(second): "every 5m",
    }


def test_a_sync_that_would_remove_everything_is_refused(mailroom: Mailroom):
    mailroom.add()
    mailroom.session.execute(text("UPDATE mail_accounts SET state = 'deleting'"))
    mailroom.session.commit()

    run = mailroom.run_job(jobs.sync_mailboxes)

    assert run.state == "retrying"
    assert "wants 0 schedules and would remove 1 of 1" in run.error
    assert len(scheduled(mailroom.session)) == 1
