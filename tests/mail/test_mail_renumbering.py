"""A folder whose UIDs have changed, or that was deleted and made again: no message is imported twice, and no new
message is lost.
"""

from mail_world import Mailroom
from sqlalchemy import text

from tests.support.imap_server import mail


def renumber(mailroom: Mailroom, messages: dict[int, bytes], dates: dict[int, str] | None = None) -> None:
    """Give the folder another UIDVALIDITY and other UIDs."""
    inbox = mailroom.server.inbox
    inbox.uidvalidity += 1
    inbox.messages, inbox.dates = messages, dates or {}
    mailroom.server.bodies.clear()


def dates_of(uids: list[int]) -> list[str]:
    return [f"05-Jan-2026 12:00:{uid:02} +0000" for uid in uids]


def test_known_messages_get_their_new_numbers_and_are_not_fetched_again(mailroom: Mailroom):
    mailroom.server.inbox.messages = {uid: mail(uid) for uid in (1, 4, 5)}
    account_id = mailroom.add()
    mailroom.poll(account_id)
    before = {each.id: each.storage_key for each in mailroom.messages()}
    renumber(mailroom, {1: mail(1), 2: mail(4), 3: mail(5)}, dict(zip((1, 2, 3), dates_of([1, 4, 5]), strict=True)))

    run = mailroom.poll(account_id)

    assert run.result is None
    assert mailroom.server.bodies == []
    after = mailroom.messages()
    assert [(each.generation, each.uidvalidity, each.uid) for each in after] == [(2, 2, 1), (2, 2, 2), (2, 2, 3)]
    assert {each.id: each.storage_key for each in after} == before
    assert len(mailroom.requested("process-email")) == 3


def test_mail_that_came_while_the_numbers_changed_is_fetched(mailroom: Mailroom):
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    renumber(mailroom, {1: mail(1), 2: mail(9), 3: mail(2)}, dict(zip((1, 3), dates_of([1, 2]), strict=True)))

    run = mailroom.poll(account_id)

    assert (run.result["stored"], mailroom.server.bodies) == (1, [2])
    assert [(each.uid, each.message_id) for each in mailroom.messages()] == [
        (1, "<1@example.org>"),
        (2, "<9@example.org>"),
        (3, "<2@example.org>"),
    ]


def test_another_message_with_a_number_of_before_is_another_message(mailroom: Mailroom):
    """A folder that is deleted and made again gives UID 1 again, and a server may use the same UIDVALIDITY twice."""
    mailroom.server.inbox.messages = {1: mail(1)}
    account_id = mailroom.add()
    mailroom.poll(account_id)
    renumber(mailroom, {1: mail(70)})
    mailroom.poll(account_id)
    mailroom.server.inbox.uidvalidity = 1
    mailroom.server.inbox.messages = {1: mail(80)}

    mailroom.poll(account_id)

    assert [(each.generation, each.uidvalidity, each.uid) for each in mailroom.messages()] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 1, 1),
    ]
    assert sorted(mailroom.objects().values()) == sorted([mail(1), mail(70), mail(80)])


def test_messages_that_cannot_be_told_by_their_headers_are_told_by_their_content(mailroom: Mailroom):
    plain = [b"Subject: a\r\n\r\na\r\n", b"Subject: b\r\n\r\nb\r\n"]
    mailroom.server.inbox.messages = dict(enumerate(plain, start=1))
    account_id = mailroom.add()
    mailroom.poll(account_id)
    objects = mailroom.objects()
    renumber(mailroom, {5: plain[1], 6: plain[0], 7: b"Subject: c\r\n\r\nc\r\n"})

    run = mailroom.poll(account_id)

    assert (run.result["matched"], run.result["stored"]) == (2, 1)
    assert [(each.uid, each.generation) for each in mailroom.messages()] == [(5, 2), (6, 2), (7, 2)]
    assert objects.items() < mailroom.objects().items()
    assert len(mailroom.requested("process-email")) == 3


def test_copies_that_look_alike_are_matched_one_by_one(mailroom: Mailroom):
    same = "05-Jan-2026 12:00:00 +0000"
    mailroom.server.inbox.messages = {1: mail(1), 2: mail(1)}
    mailroom.server.inbox.dates = {1: same, 2: same}
    account_id = mailroom.add()
    mailroom.poll(account_id)
    renumber(mailroom, {3: mail(1), 4: mail(1), 5: mail(1)}, dict.fromkeys((3, 4, 5), same))

    mailroom.poll(account_id)

    assert [each.uid for each in mailroom.messages()] == [3, 4, 5]
    assert mailroom.server.bodies == [5]


def test_a_message_that_was_deleted_here_does_not_come_back(mailroom: Mailroom):
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.session.execute(text("UPDATE mail_messages SET state = 'deleted', storage_key = NULL WHERE uid = 1"))
    mailroom.session.commit()
    renumber(mailroom, {8: mail(1), 9: mail(2)}, dict(zip((8, 9), dates_of([1, 2]), strict=True)))

    mailroom.poll(account_id)

    assert mailroom.states() == {8: "deleted", 9: "stored"}
    assert mailroom.server.bodies == []


def test_a_message_that_had_failed_is_fetched_by_its_new_number_alone(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    mailroom.server.script = lambda command, arguments: (
        b"TAG NO cannot\r\n" if command == "FETCH" and "BODY" in arguments else None
    )
    mailroom.poll(account_id)
    mailroom.server.script = lambda command, arguments: None
    renumber(mailroom, {6: mail(1)})

    mailroom.poll(account_id)

    assert [(each.uid, each.state) for each in mailroom.messages()] == [(1, "gone"), (6, "stored")]


def test_a_large_folder_is_renumbered_within_one_transaction(mailroom: Mailroom):
    mailroom.server.inbox.fill(1200)
    account_id = mailroom.add()
    mailroom.session.execute(
        text("""
        INSERT INTO mail_folders (account_id, folder, uidvalidity, last_uid) VALUES (:account, 'INBOX', 9, 1200);
        INSERT INTO mail_messages
            (account_id, folder, generation, uidvalidity, uid, state, size, received_at, message_id)
        SELECT :account, 'INBOX', 1, 9, n, 'processed', :length + length(n::text) * 2,
               timestamptz '2026-01-05 12:00 UTC' + n * interval '1 s', '<' || n || '@example.org>'
        FROM generate_series(1, 1200) AS n
        """),
        {"account": account_id, "length": len(mail(1)) - 2},
    )
    mailroom.session.commit()

    run = mailroom.poll(account_id)

    assert run.result is None
    assert {each.generation for each in mailroom.messages()} == {2}
    assert mailroom.server.bodies == []


def test_an_account_that_moves_to_another_server_compares_all_messages(mailroom: Mailroom):
    """The other server may have the same UIDVALIDITY."""
    from plugins.mail import change_account
    from tests.support.imap_server import serving

    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    with serving() as other:
        other.inbox.messages = {1: mail(50), 2: mail(1)}
        other.inbox.dates = {2: dates_of([1])[0]}
        assert change_account(mailroom.session, account_id, port=other.port)
        mailroom.session.commit()
        run = mailroom.poll(account_id)

    assert run.result["stored"] == 1
    assert [(each.generation, each.uid) for each in mailroom.messages()] == [(1, 2), (2, 1), (2, 2)]
