"""Messages that were given up: they are listed, and a person can let them be tried again."""

import pytest
from mail_world import Mailroom
from sqlalchemy import text

from plugins.mail import Retried, UnknownAccount, find_account, retry_messages
from plugins.mail.jobs import process_email
from plugins.mail.polls import MOST_CUTS
from plugins.mail.retries import given_up
from tests.support.imap_server import Hangup, mail


def retry(mailroom: Mailroom, account_id: int, *uids: int) -> Retried:
    mailroom.session.rollback()
    retried = retry_messages(mailroom.session, account_id, uids)
    mailroom.session.commit()
    return retried


def refuse(mailroom: Mailroom, *uids: int) -> None:
    """Let the server refuse these messages."""
    mailroom.server.script = lambda command, arguments: (
        b"TAG NO [SERVERBUG] cannot read it\r\n"
        if command == "FETCH" and "BODY" in arguments and int(arguments.split()[0]) in uids
        else None
    )


def give_up(mailroom: Mailroom, account_id: int, *uids: int) -> None:
    """Poll until these messages are given up."""
    refuse(mailroom, *uids)
    for _ in range(3):
        mailroom.poll(account_id)
    refuse(mailroom)


def test_a_message_at_which_connections_were_lost_is_fetched_again(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)

    def reset(command: str, arguments: str) -> None:
        if command == "FETCH" and "BODY" in arguments:
            raise Hangup(b"* 1 FETCH (UID 1 BODY[]<0> {500}\r\nFrom: ")

    mailroom.server.script = reset
    account_id = mailroom.add()
    for _ in range(MOST_CUTS):
        mailroom.session.execute(text("DELETE FROM rota_runs"))
        mailroom.session.commit()
        mailroom.poll(account_id)
    refuse(mailroom)
    mailroom.session.execute(text("DELETE FROM rota_runs"))
    mailroom.session.commit()
    mailroom.poll(account_id)
    assert mailroom.states() == {1: "unreadable"}, "no poll tries it by itself"

    assert retry(mailroom, account_id) == Retried(fetched=1, processed=0)
    assert mailroom.follow(account_id).result["stored"] == 1
    assert mailroom.states() == {1: "stored"}
    assert len(mailroom.requested("process-email")) == 1


def test_a_message_has_all_its_attempts_again(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    give_up(mailroom, account_id, 1)
    refuse(mailroom, 1)

    retry(mailroom, account_id)
    mailroom.follow(account_id)

    assert [(each.state, each.attempts) for each in mailroom.messages()] == [("failed", 1)]


def test_only_the_chosen_messages_are_tried_again(mailroom: Mailroom):
    mailroom.server.inbox.fill(3)
    account_id, other = mailroom.add(), mailroom.add("other", folder="Other")
    mailroom.server.folders["Other"] = mailroom.server.inbox
    give_up(mailroom, account_id, 1, 3)
    give_up(mailroom, other, 1)

    assert retry(mailroom, account_id, 3, 2, 77) == Retried(fetched=1, processed=0)

    assert mailroom.follow(account_id).result["stored"] == 1
    assert [(each.account_id, each.uid) for each in mailroom.messages() if each.state == "unreadable"] == [
        (account_id, 1),
        (other, 1),
    ]
    assert [each.uid for each in given_up(mailroom.session, find_account(mailroom.session, "ann"))] == [1]


def test_a_message_that_was_too_big_is_fetched_under_a_larger_limit(mailroom: Mailroom, configure):
    configure(max_bytes="5000")
    mailroom.server.inbox.messages = {1: mail(1, 6000)}
    account_id = mailroom.add()
    mailroom.poll(account_id)

    retry(mailroom, account_id)
    mailroom.follow(account_id)
    assert mailroom.states() == {1: "too_big"}, "it still is"
    configure(max_bytes="7000")
    retry(mailroom, account_id)
    mailroom.follow(account_id)

    assert mailroom.states() == {1: "stored"}


def test_a_stored_message_that_could_not_be_processed_is_processed_again(mailroom: Mailroom, run_job):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.session.execute(text("UPDATE mail_messages SET state = 'unreadable', readings = 4, error = 'x'"))
    mailroom.session.commit()

    assert retry(mailroom, account_id) == Retried(fetched=0, processed=1)

    [_, args] = mailroom.requested("process-email")
    assert run_job(process_email, args=args).result["processed"] == 1
    assert mailroom.states() == {1: "processed"}
    assert len(mailroom.requested("poll-mailbox")) == 1


def test_a_message_of_a_former_numbering_is_left_alone(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    give_up(mailroom, account_id, 1)
    mailroom.server.inbox.uidvalidity = 2
    mailroom.poll(account_id)

    assert retry(mailroom, account_id) == Retried(fetched=0, processed=0)


def test_an_account_that_is_not_there_is_told(mailroom: Mailroom):
    with pytest.raises(UnknownAccount, match=r"^unknown account 7$"):
        retry_messages(mailroom.session, 7)
