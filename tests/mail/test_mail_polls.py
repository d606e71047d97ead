"""Polls: each new message is stored once, whatever the server does."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from mail_world import Mailroom
from sqlalchemy import text

from core.upkeep import prune_successes
from plugins.mail import Mail
from plugins.mail.imap import folder
from plugins.mail.imap.connection import connected
from plugins.mail.imap.mailbox import Credentials, Mailbox
from plugins.mail.jobs import poll_mailbox
from tests.support.imap_server import Hangup, mail


def test_new_messages_are_stored_and_their_processing_is_requested(mailroom: Mailroom):
    mailroom.server.inbox.fill(3)
    account_id = mailroom.add()

    run = mailroom.poll(account_id)

    assert (run.state, run.result) == ("succeeded", {"stored": 3, "bytes": sum(map(len, mailroom.objects().values()))})
    stored = mailroom.messages()
    assert [(each.uid, each.state, each.message_id) for each in stored] == [
        (uid, "stored", f"<{uid}@example.org>") for uid in (1, 2, 3)
    ]
    assert {each.storage_key: mail(each.uid) for each in stored} == mailroom.objects()
    assert mailroom.requested("process-email") == [{"message_id": each.id} for each in stored]


def test_a_second_poll_fetches_only_what_came_meanwhile(mailroom: Mailroom):
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.inbox.fill(1, start=7)

    mailroom.poll(account_id)
    last = mailroom.poll(account_id)

    assert last.result is None
    assert mailroom.server.bodies == [1, 2, 7]
    assert list(mailroom.states()) == [1, 2, 7]
    assert len(mailroom.requested("process-email")) == 3


def test_a_poll_leaves_no_mark_on_the_server(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)

    mailroom.poll(mailroom.add())

    sent = mailroom.server.commands
    assert [command for command in sent if "EXAMINE" in command] == ['EXAMINE "INBOX"']
    assert not [each for each in sent if "SELECT" in each or "STORE" in each or "BODY[" in each or "RFC822 " in each]


def test_a_poll_without_news_needs_no_search(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.commands.clear()

    mailroom.poll(account_id)

    assert mailroom.server.commands == ["CAPABILITY", "LOGIN", 'EXAMINE "INBOX"', "LOGOUT"]


def test_a_poll_without_news_is_counted_and_deleted_after_an_hour(mailroom: Mailroom, run_job, use_jobs):
    """A thousand mailboxes have a million such polls a day."""
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    with_news, _ = mailroom.poll(account_id), mailroom.poll(account_id)
    mailroom.session.execute(text("UPDATE rota_runs SET slot = due_at, finished_at = finished_at - interval '61 min'"))
    mailroom.session.commit()

    use_jobs(poll_mailbox, prune_successes)
    pruned = run_job(prune_successes)

    assert pruned.result == {"deleted": 1}
    assert mailroom.session.scalars(text("SELECT id FROM rota_runs WHERE job = 'poll-mailbox'")).all() == [with_news.id]


@pytest.mark.parametrize("uidnext", [None, 0], ids=["told", "not told"])
def test_a_search_that_answers_with_the_last_message_brings_it_once(mailroom: Mailroom, uidnext):
    """``99:*`` finds the last message, even if its UID is less."""
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.inbox.uidnext = 100 if uidnext is None else 0

    run = mailroom.poll(account_id)

    assert "UID SEARCH UID 3:*" in mailroom.server.commands
    assert run.result is None
    assert mailroom.server.bodies == [1, 2]


def test_an_uidnext_that_goes_back_loses_nothing(mailroom: Mailroom):
    mailroom.server.inbox.fill(1, start=10)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.inbox.fill(1, start=4)
    mailroom.server.inbox.uidnext = 5

    mailroom.poll(account_id)

    assert mailroom.states() == {4: "stored", 10: "stored"}
    assert mailroom.server.bodies == [10, 4]


def test_a_message_that_goes_between_search_and_fetch_is_recorded_as_gone(mailroom: Mailroom):
    """Dovecot then answers OK with a body of 0 bytes."""
    mailroom.server.inbox.fill(3)

    def expunge(command: str, arguments: str) -> bytes | None:
        if command == "FETCH" and arguments.startswith("2 ") and "BODY" in arguments:
            mailroom.server.inbox.messages.pop(2, None)
            return b'* 2 FETCH (UID 2 BODY[]<0> "")\r\nTAG OK done\r\n'
        return None

    mailroom.server.script = expunge
    run = mailroom.poll(mailroom.add())

    assert mailroom.states() == {1: "stored", 2: "gone", 3: "stored"}
    assert (run.result["stored"], run.result["gone"]) == (2, 1)


def test_a_message_that_the_server_leaves_out_of_its_answer_is_gone_too(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)

    def expunge(command: str, arguments: str) -> None:
        if command == "FETCH" and "BODY" in arguments:
            mailroom.server.inbox.messages.clear()

    mailroom.server.script = expunge
    mailroom.poll(mailroom.add())

    assert mailroom.states() == {1: "gone"}


def test_a_message_that_stays_empty_fails_alone_and_is_given_up_at_the_third_attempt(mailroom: Mailroom):
    mailroom.server.inbox.fill(3)

    def empty(command: str, arguments: str) -> bytes | None:
        is_it = command == "FETCH" and arguments.startswith("2 ") and "BODY" in arguments
        return b'* 2 FETCH (UID 2 BODY[] "")\r\nTAG OK done\r\n' if is_it else None

    mailroom.server.script = empty
    account_id = mailroom.add()
    runs = [mailroom.poll(account_id)]
    assert mailroom.states() == {1: "stored", 2: "failed", 3: "stored"}
    runs += [mailroom.poll(account_id) for _ in range(3)]

    assert {run.state for run in runs} == {"succeeded"}
    failed = mailroom.messages()[1]
    assert (failed.state, failed.attempts) == ("unreadable", 3)
    assert failed.error == "the server has sent an empty message, and still lists it"
    asked = [each for each in mailroom.server.commands if each.startswith("UID FETCH 2 (BODY")]
    assert asked == ["UID FETCH 2 (BODY.PEEK[]<0.1048576>)", *["UID FETCH 2 (BODY.PEEK[])"] * 2]


def test_a_message_that_failed_can_be_fetched_later(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    account_id = mailroom.add()
    mailroom.server.script = lambda command, arguments: (
        b"TAG NO [SERVERBUG] cannot read it\r\n" if command == "FETCH" and "BODY" in arguments else None
    )
    mailroom.poll(account_id)
    assert mailroom.states() == {1: "failed"}
    mailroom.server.script = lambda command, arguments: None

    mailroom.poll(account_id)

    assert mailroom.states() == {1: "stored"}
    assert mailroom.messages()[0].attempts == 0, "from here on, the attempts of its processing are counted"
    assert len(mailroom.requested("process-email")) == 1


def test_a_message_at_which_the_connection_always_breaks_does_not_block_the_mailbox(mailroom: Mailroom):
    mailroom.server.inbox.fill(3)

    def reset(command: str, arguments: str) -> None:
        if command == "FETCH" and arguments.startswith("2 ") and "BODY" in arguments:
            raise Hangup(b"* 2 FETCH (UID 2 BODY[]<0> {500}\r\nFrom: ")

    mailroom.server.script = reset
    account_id = mailroom.add()
    first = mailroom.poll(account_id)
    assert (first.state, mailroom.states()) == ("retrying", {1: "stored", 2: "failed"})
    assert "the connection to 127.0.0.1" in first.error

    mailroom.again(first)

    assert mailroom.states() == {1: "stored", 2: "failed", 3: "stored"}


def test_a_message_whose_size_the_server_tells_wrongly_is_given_up_at_the_third_attempt(mailroom: Mailroom):
    """The remaining bytes are not an answer. But the server is not busy, so the account is not postponed."""
    mailroom.server.inbox.fill(3)
    mailroom.server.script = lambda command, arguments: (
        b"* 2 FETCH (UID 2 BODY[] {5}\r\nFrom: ann@example.org\r\n\r\nHello)\r\nTAG OK done\r\n"
        if command == "FETCH" and arguments.startswith("2 ") and "BODY" in arguments
        else None
    )
    run = mailroom.poll(mailroom.add())
    assert (run.state, mailroom.states()) == ("retrying", {1: "stored", 2: "failed"})
    assert "has sent an answer that cannot be read" in run.error
    assert "ann@example.org" not in run.error
    assert "example.org" not in mailroom.messages()[1].error

    for _ in range(3):
        run = mailroom.again(run)

    assert (run.state, mailroom.states()) == ("succeeded", {1: "stored", 2: "unreadable", 3: "stored"})


def test_an_answer_that_cannot_be_read_stops_no_other_message(mailroom: Mailroom):
    mailroom.server.inbox.fill(3)
    mailroom.server.inbox.dates[2] = "39-Foo-2026 12:00:00 +0000"
    mailroom.server.inbox.sizes[3] = "many"

    mailroom.poll(mailroom.add())

    assert mailroom.states() == {1: "stored", 2: "stored", 3: "stored"}


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("01-Jan-2096 00:00:00 +0000", "tomorrow"),
        ("05-Jan-2026 12:00:00 +0530", datetime(2026, 1, 5, 6, 30, tzinfo=UTC)),
        ("01-Jan-1904 00:00:00 +0000", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_the_servers_if_it_can_be(mailroom: Mailroom, date, expected):
    mailroom.server.inbox.fill(1)
    mailroom.server.inbox.dates[1] = date

    mailroom.poll(mailroom.add())

    [message] = mailroom.messages()
    assert message.state == "stored"
    if expected == "tomorrow":
        assert 0.99 < (message.received_at - datetime.now(UTC)).total_seconds() / 86400 < 1.01
    else:
        assert message.received_at == expected


def test_sizes_are_hints(mailroom: Mailroom):
    mailroom.server.inbox.messages = {1: mail(1, 3_000_000), 2: mail(2)}
    mailroom.server.inbox.sizes = {1: "7", 2: "900000"}

    mailroom.poll(mailroom.add())

    assert [each.size for each in mailroom.messages()] == [3_000_000, len(mail(2))]
    assert sorted(mailroom.objects().values()) == sorted([mail(1, 3_000_000), mail(2)])


@pytest.mark.parametrize("size", [1024 * 1024, 1024 * 1024 + 1, 2 * 1024 * 1024])
def test_a_message_is_fetched_in_pieces(mailroom: Mailroom, size):
    mailroom.server.inbox.messages = {1: mail(1, size)}

    mailroom.poll(mailroom.add())

    assert list(mailroom.objects().values()) == [mail(1, size)]
    asked = [each for each in mailroom.server.commands if "BODY" in each]
    assert asked == [f"UID FETCH 1 (BODY.PEEK[]<{start}.1048576>)" for start in range(0, size + 1, 1024 * 1024)]


def test_a_server_that_sends_the_whole_message_instead_of_a_piece_is_understood(mailroom: Mailroom):
    body = mail(1, 3_000_000)
    mailroom.server.inbox.messages = {1: body}
    mailroom.server.script = lambda command, arguments: (
        b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b)\r\nTAG OK done\r\n" % (len(body), body)
        if command == "FETCH" and "BODY" in arguments
        else None
    )

    mailroom.poll(mailroom.add())

    assert list(mailroom.objects().values()) == [body]


def test_pieces_of_a_wrong_length_are_not_put_together(mailroom: Mailroom):
    """The next attempt asks for the whole message."""
    body = mail(1, 3_000_000)
    mailroom.server.inbox.messages = {1: body}
    mailroom.server.script = lambda command, arguments: (
        b"* 1 FETCH (UID 1 BODY[]<1048576> {%d}\r\n%b)\r\nTAG OK done\r\n" % (len(body), body)
        if command == "FETCH" and "<1048576." in arguments
        else None
    )
    account_id = mailroom.add()

    mailroom.poll(account_id)
    assert mailroom.states() == {1: "failed"}
    mailroom.poll(account_id)

    assert list(mailroom.objects().values()) == [body]


def test_a_message_that_is_too_big_is_recorded_and_not_fetched(mailroom: Mailroom, configure):
    configure(max_bytes="5000")
    mailroom.server.inbox.messages = {1: mail(1, 6000), 2: mail(2)}

    run = mailroom.poll(mailroom.add())

    assert (run.result["too_big"], run.result["stored"]) == (1, 1)
    assert [(each.state, each.size) for each in mailroom.messages()] == [("too_big", 6000), ("stored", len(mail(2)))]
    assert mailroom.server.bodies == [2]


def test_a_message_whose_size_was_understated_is_not_kept(mailroom: Mailroom, configure):
    configure(max_bytes="5000")
    mailroom.server.inbox.messages = {1: mail(1, 6000)}
    mailroom.server.inbox.sizes = {1: "10"}

    mailroom.poll(mailroom.add())

    assert mailroom.states() == {1: "too_big"}
    assert mailroom.objects() == {}


@pytest.mark.parametrize("budget", [{"messages_per_run": "2"}, {"bytes_per_run": "1500"}], ids=["messages", "bytes"])
def test_a_poll_leaves_what_is_over_its_budget_to_a_run_that_follows(mailroom: Mailroom, configure, budget):
    configure(**budget)
    mailroom.server.inbox.messages = {uid: mail(uid, 1000) for uid in range(1, 6)}
    account_id = mailroom.add()

    run = mailroom.poll(account_id)

    assert (run.result["stored"], run.result["more"]) == (2, 1)
    assert mailroom.requested("poll-mailbox")[1:] == [{"account_id": account_id, "host": "127.0.0.1"}]
    assert [mailroom.follow(account_id).result["stored"] for _ in range(2)] == [2, 1]
    assert mailroom.poll(account_id).result is None
    assert mailroom.server.bodies == [1, 2, 3, 4, 5]


def test_a_large_folder_is_searched_in_windows(mailroom: Mailroom, configure):
    """imaplib cannot read an answer with 150,000 UIDs."""
    configure(messages_per_run="10")
    small = mail(1)
    mailroom.server.inbox.messages = dict.fromkeys([*range(1, 5002), 4_000_000_000], small)
    account_id = mailroom.add()
    mailroom.poll(account_id)
    assert "UID SEARCH UID 1:5000" in mailroom.server.commands
    mailroom.session.execute(text("UPDATE mail_folders SET last_uid = 5000"))
    mailroom.session.commit()

    mailroom.follow(account_id)

    assert [each for each in mailroom.states() if each > 10] == [5001, 4_000_000_000]
    searched = [each for each in mailroom.server.commands if "SEARCH" in each]
    assert searched == ["UID SEARCH UID 1:5000", "UID SEARCH UID 5001:10000", "UID SEARCH UID 10001:15000",
                        "UID SEARCH UID 4000000000:4000004999"]  # fmt: skip
    assert len([each for each in mailroom.server.commands if each.startswith("FETCH")]) <= 14


def test_a_folder_with_letters_of_any_alphabet_is_found(mailroom: Mailroom):
    mailroom.server.folders["Entw&APw-rfe/&ZeVnLIqe-"] = mailroom.server.inbox
    mailroom.server.inbox.fill(1)

    mailroom.poll(mailroom.add(folder="Entwürfe/日本語"))

    assert mailroom.states() == {1: "stored"}


def test_what_is_left_of_an_urgent_account_is_urgent(mailroom: Mailroom, configure):
    configure(messages_per_run="1")
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add(is_urgent=True)
    mailroom.poll(account_id)

    assert mailroom.follow(account_id).priority == 5


def test_an_account_that_cannot_be_polled_makes_no_other_late(mailroom: Mailroom):
    mailroom.server.inbox.fill(1)
    broken, sound = mailroom.add("broken", secret="none", folder="a"), mailroom.add("sound")

    assert mailroom.poll(broken).state == "retrying"

    assert mailroom.poll(sound).result["stored"] == 1


def test_polls_of_one_host_are_limited_and_the_schedules_are_those_of_the_accounts(mailroom: Mailroom, configure):
    configure(polls_per_host="7")
    account_id = mailroom.add()
    plugin = Mail()

    poll = next(job for job in plugin.register_jobs() if job.name == "poll-mailbox")
    (wanted,) = plugin.register_schedules()["poll-mailbox"](mailroom.session)

    assert (poll.queue, poll.max_retries, poll.retry_delay.seconds, poll.misfire) == ("mail", 3, 60, "skip")
    assert ("imap:{host}", 7) in [(limit.name, limit.at_once) for limit in poll.limits]
    assert poll.limit_names({"account_id": 1, "host": "imap.example.org"})[0] == "imap:imap.example.org"
    assert (wanted.key, wanted.every.seconds, wanted.args["host"]) == (str(account_id), 60, "127.0.0.1")


def test_a_window_has_no_uid_before_its_start(mailroom: Mailroom):
    mailroom.server.inbox.fill(2)
    mailbox = Mailbox(1, "127.0.0.1", mailroom.server.port, "none", None, "ann", "INBOX")

    with connected(mailbox, Credentials(password="sesame")) as client:
        opened = replace(folder.examine(client, mailbox), uidnext=0)
        found = list(folder.windows(client, opened, 9))

    assert found == []
    assert "UID SEARCH UID 10:*" in mailroom.server.commands
