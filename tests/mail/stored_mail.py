"""Makes accounts and stored messages with one call each, as a poll leaves them."""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from plugins.mail.models import Account, Content, Folder, Message
from plugins.mail.store import LocalStore, message_key

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)
HELLO = b"From: Ann <ann@example.com>\r\nSubject: hello\r\nMessage-ID: <1@example.com>\r\n\r\nhow are you?\r\n"


@dataclass(frozen=True)
class StoredMail:
    """Every method commits."""

    engine: Engine
    store: LocalStore

    def account(self, name: str = "desk", **values: Any) -> int:
        columns = {"host": "mail.example.com", "port": 993, "tls": "implicit", "username": f"{name}@example.com"}
        with self.engine.begin() as connection:
            made = connection.execute(insert(Account).values(name=name, **{**columns, **values}))
            account_id = made.inserted_primary_key[0]
            connection.execute(insert(Folder).values(account_id=account_id, folder="INBOX", uidvalidity=1))
        return account_id

    def message(self, account_id: int, uid: int, content: bytes | None = HELLO, **values: Any) -> int:
        """Make a message that waits to be processed, and its object unless ``content`` is None."""
        key = message_key(account_id, 1, 1, uid)
        if content is not None:
            self.store.put(key, io.BytesIO(content))
        columns = {"folder": "INBOX", "generation": 1, "uidvalidity": 1, "state": "stored", "size": len(content or b"")}
        columns |= {"account_id": account_id, "uid": uid, "received_at": NOON, "storage_key": key}
        with self.engine.begin() as connection:
            made = connection.execute(insert(Message).values(**{**columns, **values}))
        return made.inserted_primary_key[0]

    def change(self, account_id: int, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(Account).where(Account.id == account_id).values(values))

    def find(self, model: Any, key: int) -> Any:
        """Return a row, or None if it does not exist."""
        with Session(self.engine, expire_on_commit=False) as session:
            return session.get(model, key)

    def messages(self) -> list[tuple[int, str]]:
        """Return the id and the state of every message."""
        with self.engine.connect() as connection:
            return [(row.id, row.state) for row in connection.execute(select(Message.id, Message.state))]

    def contents(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(select(Content.message_id)))

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        return sorted(found.key for found in self.store.list())
