"""``rota mail …``: the commands call the functions that applications call."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import schedules
from core.cli import main
from plugins.mail import list_accounts

ADD = ("mail", "add", "ann", "--host", "imap.example.org", "--username", "ann", "--tls", "implicit", "--secret", "ann")


@pytest.fixture
def rota(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


def test_an_account_is_added_listed_and_changed(rota, session):
    added = rota(*ADD, "--every", "5m", "--urgent")
    assert (added.exit_code, added.stdout) == (0, "added ann as account 1\n")

    (listed,) = json.loads(rota("mail", "list", "--json").stdout)
    assert (listed["name"], listed["port"], listed["poll_seconds"], listed["is_urgent"]) == ("ann", 993, 300, True)
    assert rota("mail", "change", "ann", "--every", "10s", "--not-urgent", "--rename", "bob").stdout == "changed ann\n"
    assert rota("mail", "change", "bob", "--every", "10s").stdout == "nothing to change: bob\n"
    assert rota("mail", "list").stdout.splitlines()[1].split("\t")[:5] == [
        "bob",
        "imap.example.org",
        "ann",
        "INBOX",
        "10",
    ]
    [found] = schedules(session, "poll-mailbox")
    assert (found.spec, found.priority) == ("every 10s", None)


def test_polls_of_accounts_that_are_added_one_by_one_are_spread(rota, session):
    for number in range(20):
        rota(*ADD[:2], f"user-{number}", *ADD[3:5], "--username", f"user-{number}", *ADD[7:], "--every", "10s")

    phases = session.scalars(text("SELECT floor(phase) FROM rota_key_schedules")).all()
    assert len(phases) == 20
    assert max(Counter(phases).values()) <= 1.5 * 20 / 10


def test_an_account_is_paused_resumed_and_deleted(rota, session):
    rota(*ADD)

    assert rota("mail", "pause", "ann", "--reason", "moving").stdout == "paused ann\n"
    assert json.loads(rota("mail", "list", "--json").stdout)[0]["reason"] == "moving"
    assert rota("mail", "resume", "ann").stdout == "resumed ann\n"
    assert rota("mail", "resume", "ann").stdout == "ann is active\n"
    assert rota("mail", "delete", "ann", input="n\n").exit_code == 1
    assert len(list_accounts(session)) == 1
    session.rollback()
    assert rota("mail", "delete", "ann", "--yes").stdout == "deleted ann; a job deletes its messages\n"
    assert rota("mail", "list").stdout == "no accounts; `rota mail add` adds one\n"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((*ADD, "--every", "1s"), 1, "rota: bad every="),
        ((*ADD, "--every", "often"), 2, "'often' is not a number with s, m, h or d, such as 60s"),
        ((*ADD, "--port", "99999"), 1, "rota: bad port=99999; expected a number from 1 to 65535"),
        (("mail", "resume", "nobody"), 1, "rota: unknown account 'nobody'; `rota mail list` has their names"),
        ((*ADD, "--auth", "kerberos"), 2, "'kerberos' is not one of"),
        (ADD[:-2], 1, "rota: auth='password' needs secret"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(rota, words, status, told):
    refused = rota(*words)

    assert (refused.exit_code, told in refused.stderr) == (status, True)


def test_an_account_that_is_added_twice_is_refused(rota):
    rota(*ADD)

    assert "there is an account 'ann' already" in rota(*ADD).stderr


def test_a_refresh_token_is_read_from_a_file_and_stored_encrypted(rota, session, configure):
    key = rota("mail", "key").stdout.strip()
    configure(key=key)
    oauth = ("--auth", "refresh_token", "--token-url", "https://login.example.org/token", "--client-id", "rota")

    added = rota(*ADD[:-2], *oauth, "--refresh-token-file", "-", input="1//token-of-ann\n")

    assert added.exit_code == 0, added.stderr
    (stored,) = session.scalars(text("SELECT refresh_token FROM mail_tokens"))
    assert b"token-of-ann" not in bytes(stored)


def test_messages_that_were_given_up_are_listed_and_tried_again(rota, stored_mail):
    account_id = stored_mail.account("ann")
    stored_mail.message(
        account_id, 7, content=None, storage_key=None, state="unreadable", error="the connection was lost"
    )
    stored_mail.message(account_id, 9, content=None, storage_key=None, state="too_big")

    assert rota("mail", "given-up", "ann").stdout.splitlines()[1].split("\t")[:2] == ["7", "unreadable"]
    assert [each["uid"] for each in json.loads(rota("mail", "given-up", "ann", "--json").stdout)] == [7, 9]
    assert rota("mail", "retry", "ann", "7").stdout == "to be fetched again: 1; to be processed again: 0\n"
    assert rota("mail", "retry", "ann").stdout == "to be fetched again: 1; to be processed again: 0\n"
    assert rota("mail", "given-up", "ann").stdout == "no message was given up\n"
