"""One poll of a mailbox: fetches new messages, stores each of them once, and requests their processing.

The object is stored first, at a key that depends only on the message's identity. So a crash leaves at most one object,
which the next attempt replaces. The row, the high-water mark and the request follow in one fenced transaction. No
transaction is open while the poll waits for the network.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from imapclient import IMAPClient

from core import Run
from plugins.mail import consequences, messages, renumbering, tokens
from plugins.mail.accounts import POLL, URGENT
from plugins.mail.errors import AnswerUnreadable, ConnectionCut, LoginRefused, MailError, MessageFailed, ServerBusy
from plugins.mail.imap import body, folder
from plugins.mail.imap.answers import explained
from plugins.mail.imap.connection import connected
from plugins.mail.imap.folder import Listed
from plugins.mail.imap.mailbox import Credentials, Mailbox
from plugins.mail.messages import Failed, Numbering, Outcome
from plugins.mail.models import Account, AccountState, Auth, MessageState
from plugins.mail.secrets import secret
from plugins.mail.settings import MailSettings
from plugins.mail.store import Store, message_key, open_store

#: A message is given up after this many answers without the message.
MOST_ATTEMPTS = 3
#: A message is given up after this many lost connections, which may be the network's fault and not the message's.
MOST_CUTS = 10
PROCESS = "process-email"


@dataclass(frozen=True, slots=True)
class Polled:
    """An account at the beginning of a poll."""

    mailbox: Mailbox
    auth: str
    secret: str | None
    is_urgent: bool
    #: Whether the account has refusals, postponements or the error of a failed poll.
    has_trouble: bool


def poll(run: Run, account_id: int) -> dict[str, Any] | None:
    """Poll the mailbox of an account. Return how many messages ended in each state, or None if there were no messages.

    Raises PollFailed.
    """
    polled = _begin(run, account_id)
    if isinstance(polled, str):
        return {"skipped": polled}
    store = open_store(MailSettings.current().store)
    try:
        with connected(polled.mailbox, _credentials(run, polled)) as client:
            return Poll(run, client, store, polled).work()
    except LoginRefused as error:
        raise consequences.count_refusal(run, account_id, error) from None
    except ServerBusy as error:
        return consequences.postpone(run, account_id, error)
    except MailError as error:
        consequences.show_failure(run, account_id, error)
        raise


def _begin(run: Run, account_id: int) -> Polled | str:
    """Return the account, or the reason why it is not polled now. Ends the transaction."""
    account = run.session.get(Account, account_id, populate_existing=True)
    found = _polled(run, account)
    run.checkpoint()
    return found


def _polled(run: Run, account: Account | None) -> Polled | str:
    if account is None:
        return "unknown account"
    if account.state != AccountState.ACTIVE:
        return account.state
    if account.postponed_until is not None and account.postponed_until > run.now:
        return "postponed"
    names = ("host", "port", "tls", "ca_file", "username", "folder")
    mailbox = Mailbox(account.id, **{name: getattr(account, name) for name in names})
    has_trouble = bool(account.auth_failures or account.postponements or account.reason)
    return Polled(mailbox, account.auth, account.secret, account.is_urgent, has_trouble)


def _credentials(run: Run, polled: Polled) -> Credentials:
    if polled.auth == Auth.PASSWORD:
        return Credentials(password=secret(str(polled.secret)))
    return Credentials(access_token=tokens.access_token(run, polled.mailbox.account_id))


@dataclass(slots=True)
class Poll:
    """A poll whose connection is logged in."""

    run: Run
    client: IMAPClient
    store: Store
    polled: Polled
    counts: dict[str, int] = field(default_factory=dict)
    #: The number of messages and of bytes that were fetched.
    fetched: int = 0
    size: int = 0
    #: Whether the account has changed since the poll began.
    is_over: bool = False

    @property
    def mailbox(self) -> Mailbox:
        return self.polled.mailbox

    @property
    def is_used_up(self) -> bool:
        """Whether the budget of a run is used up."""
        settings = MailSettings.current()
        return self.fetched >= settings.messages_per_run or self.size >= settings.bytes_per_run

    def work(self) -> dict[str, Any] | None:
        """Fetch new messages, and then messages that could not be fetched before. Return None if there were none."""
        opened = folder.examine(self.client, self.mailbox)
        numbered = self._numbering(opened)
        if numbered is None:
            return {"skipped": "changed"}
        left = self._failed(numbered)
        for listed in self._new(opened, numbered):
            self._take(numbered, listed, Failed(listed.uid, 0))
            if self.is_over:
                return {**self.counts, "skipped": "changed"}
            if self.is_used_up:
                return self._follow_up()
        self._try_again(numbered, left)
        return {"stored": 0, **self.counts, "bytes": self.size} if self.counts else None

    def _numbering(self, opened: folder.Opened) -> Numbering | None:
        """Return the folder's present numbering, or None if the account was changed. Ends the transaction."""
        session = self.run.session
        numbered = messages.numbering(session, self.mailbox)
        if numbered is None and messages.hold(session, self.mailbox):
            numbered = messages.begin(session, self.mailbox, opened.uidvalidity)
        if self.polled.has_trouble:
            consequences.forget_troubles(session, self.mailbox.account_id)
        self.run.checkpoint()
        if numbered is not None and numbered.uidvalidity != opened.uidvalidity:
            return renumbering.renumber(self.run, self.client, self.mailbox, opened, numbered)
        return numbered

    def _new(self, opened: folder.Opened, numbered: Numbering) -> Iterator[Listed]:
        """Yield the messages without a row, in the order of their UIDs."""
        with explained(self.mailbox):
            for window in folder.windows(self.client, opened, numbered.last_uid):
                unknown = self._without_rows(numbered, window)
                yield from self._listed(unknown)
                if not unknown:
                    self._advance(window[-1])

    def _without_rows(self, numbered: Numbering, uids: list[int]) -> list[int]:
        known = messages.known(self.run.session, self.mailbox, numbered, uids)
        self.run.checkpoint()
        return [uid for uid in uids if uid not in known]

    def _listed(self, uids: list[int]) -> Iterator[Listed]:
        """Yield the messages with their sizes, as many at once as a run may fetch."""
        at_once = MailSettings.current().messages_per_run
        for start in range(0, len(uids), at_once):
            some = uids[start : start + at_once]
            listed = folder.list_messages(self.client, some)
            yield from (listed.get(uid) or Listed(uid, 0, None) for uid in some)

    def _advance(self, uid: int) -> None:
        messages.advance(self.run.session, self.mailbox, uid)
        self.run.checkpoint()

    def _failed(self, numbered: Numbering) -> list[Failed]:
        """Return messages that could not be fetched by earlier polls. Ends the transaction."""
        most = MailSettings.current().messages_per_run
        found = messages.failed(self.run.session, self.mailbox, numbered, most)
        self.run.checkpoint()
        return found

    def _try_again(self, numbered: Numbering, left: list[Failed]) -> None:
        """Fetch messages that could not be fetched before, until the budget is used up."""
        if not left:
            return
        with explained(self.mailbox):
            listed = folder.list_messages(self.client, [each.uid for each in left])
        for each in left:
            if not self.is_used_up and not self.is_over:
                self._take(numbered, listed.get(each.uid) or Listed(each.uid, 0, None), each)

    def _take(self, numbered: Numbering, listed: Listed, before: Failed) -> None:
        """Fetch one message and record the result.

        An error of the message is only recorded; a lost connection is also raised.
        """
        self.fetched += 1
        try:
            self._fetch(numbered, listed, is_whole=before.attempts > 0)
        except MessageFailed as error:
            self._record(numbered, listed, _failure(before, MOST_ATTEMPTS, str(error)))
        except AnswerUnreadable as error:
            self._record(numbered, listed, _failure(before, MOST_ATTEMPTS, str(error)))
            raise
        except (ConnectionCut, ServerBusy) as error:
            self._record(numbered, listed, _failure(before, MOST_CUTS, str(error)))
            raise

    def _fetch(self, numbered: Numbering, listed: Listed, *, is_whole: bool) -> None:
        most = MailSettings.current().max_bytes
        if listed.size > most:
            self._record(numbered, listed, Outcome(MessageState.TOO_BIG, listed.size))
            return
        with tempfile.SpooledTemporaryFile(max_size=body.PIECE) as file:
            fetched = body.fetch(self.client, self.mailbox, listed.uid, file, most=most, whole=is_whole)
            self.size += fetched.size
            if fetched.is_too_big:
                self._record(numbered, listed, Outcome(MessageState.TOO_BIG, fetched.size))
            elif fetched.size:
                self._keep(numbered, listed, fetched, file)
            elif self._is_there(listed.uid):
                raise MessageFailed("the server has sent an empty message, and still lists it")
            else:
                self._record(numbered, listed, Outcome(MessageState.GONE))

    def _is_there(self, uid: int) -> bool:
        with explained(self.mailbox):
            return folder.is_there(self.client, uid)

    def _keep(self, numbered: Numbering, listed: Listed, fetched: body.Fetched, file: IO[bytes]) -> None:
        """Store a message, unless its content equals that of a message from before the folder was renumbered."""
        if numbered.generation > 1 and self._is_known(numbered, listed, fetched.sha256):
            return
        file.seek(0)
        message_id = body.message_id(file.read(body.HEAD))
        file.seek(0)
        key = message_key(self.mailbox.account_id, numbered.number, numbered.generation, listed.uid)
        self.store.put(key, file)
        stored = Outcome(MessageState.STORED, fetched.size, fetched.sha256, message_id, key)
        self._record(numbered, listed, stored)
        if self.is_over:
            self.store.delete([key])

    def _is_known(self, numbered: Numbering, listed: Listed, sha256: bytes) -> bool:
        session = self.run.session
        if not messages.hold(session, self.mailbox):
            return False
        row = messages.take_over(session, self.mailbox, numbered, listed, sha256)
        if row is not None:
            messages.advance(session, self.mailbox, listed.uid)
            self._count("matched")
        self.run.checkpoint()
        return row is not None

    def _record(self, numbered: Numbering, listed: Listed, outcome: Outcome) -> None:
        """Write the message's row, advance the high-water mark and request the processing, in one transaction.

        If the account has changed since the poll began, write nothing, and end the poll.
        """
        session = self.run.session
        if not messages.hold(session, self.mailbox):
            self.is_over = True
            self.run.checkpoint()
            return
        row = messages.record(session, self.mailbox, numbered, listed, outcome, self.run.now)
        messages.advance(session, self.mailbox, listed.uid)
        if row is not None and outcome.state == MessageState.STORED:
            self.run.enqueue(PROCESS, key=str(row), args={"message_id": row})
        self._count(outcome.state)
        self.run.checkpoint(self.counts)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _follow_up(self) -> dict[str, Any]:
        """Leave the remaining messages to a run that follows at once, so that other mailboxes have their turn."""
        priority = URGENT if self.polled.is_urgent else None
        self.run.enqueue(POLL, key=self.run.key, args=dict(self.run.args), priority=priority, unless="waiting")
        return {**self.counts, "bytes": self.size, "more": 1}


def _failure(before: Failed, most: int, error: str) -> Outcome:
    is_last = before.attempts + 1 >= most
    return Outcome(MessageState.UNREADABLE if is_last else MessageState.FAILED, error=error)
