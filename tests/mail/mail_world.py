"""Common parts of the tests of polls: accounts on a server, polls with the real claim and commit, and rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.ledger.models import RunRow
from core.testing import RunJob
from plugins.mail import add_account
from plugins.mail.jobs import poll_mailbox
from plugins.mail.models import Account, Message
from tests.support.imap_server import ImapServer


@dataclass
class Mailroom:
    """A service that polls mailboxes of one server."""

    server: ImapServer
    session: Session
    run_job: RunJob
    folder: Path

    def add(self, name: str = "ann", **options: Any) -> int:
        """Add an account of the server, without its first run, so that a test has only its own runs."""
        of = {"host": "127.0.0.1", "port": self.server.port, "tls": "none", "username": "ann", "secret": "ann"}
        account_id = add_account(self.session, name, **{**of, **options})
        self.session.execute(text("DELETE FROM rota_runs"))
        self.session.commit()
        return account_id

    def poll(self, account_id: int) -> RunRow:
        """Execute one attempt of one run of the account."""
        args = {"account_id": account_id, "host": "127.0.0.1"}
        return self.run_job(poll_mailbox, key=str(account_id), args=args)

    def follow(self, account_id: int) -> RunRow:
        """Execute one attempt of the run to which a poll of the account has left the remaining messages."""
        waiting = text("SELECT id FROM rota_runs WHERE job = 'poll-mailbox' AND key = :key AND state = 'queued'")
        self.session.rollback()
        run_id = self.session.execute(waiting, {"key": str(account_id)}).scalar_one()
        self.session.rollback()
        self.run_job.executor.execute(poll_mailbox, run_id)
        return self.run_job.row(run_id)

    def again(self, run: RunRow) -> RunRow:
        """Execute the next attempt of a run that has failed."""
        self.session.execute(text("UPDATE rota_runs SET due_at = clock_timestamp()"))
        self.session.commit()
        self.run_job.executor.execute(poll_mailbox, run.id)
        return self.run_job.row(run.id)

    def account(self, account_id: int) -> Account:
        """Return the account as it is now."""
        self.session.rollback()
        return self.session.get_one(Account, account_id, populate_existing=True)

    def messages(self) -> Sequence[Message]:
        """Return all rows of messages."""
        self.session.rollback()
        rows = select(Message).order_by(Message.account_id, Message.generation, Message.uid)
        return self.session.scalars(rows, execution_options={"populate_existing": True}).all()

    def states(self) -> dict[int, str]:
        """Return the states of the messages by UID."""
        return {each.uid: each.state for each in self.messages()}

    def requested(self, job: str) -> list[dict[str, Any]]:
        """Return the arguments of the requested runs of a job, in order."""
        self.session.rollback()
        rows = self.session.execute(text("SELECT args FROM rota_runs WHERE job = :job ORDER BY id"), {"job": job})
        return [row.args for row in rows]

    def objects(self) -> dict[str, bytes]:
        """Return the objects in the store."""
        root = self.folder / "store"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
