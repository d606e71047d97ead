"""The tables of mail.

No table has a password, and tokens are encrypted. The database checks the states of a row, and that each message of a
mailbox has one row.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables

#: The constraint that gives each message only one row.
ONE_ROW = "mail_messages_uid_key"


class AccountState(StrEnum):
    """The states of an account: ``active``, unless a person paused it, its log-in was refused too often, or it is being
    deleted.
    """

    ACTIVE = "active"
    PAUSED = "paused"
    AUTH_FAILED = "auth_failed"
    DELETING = "deleting"


class Tls(StrEnum):
    """How a connection becomes encrypted. With ``none``, it is not encrypted."""

    IMPLICIT = "implicit"
    STARTTLS = "starttls"
    NONE = "none"


class Auth(StrEnum):
    """How an account logs in: with a password, or with an OAuth2 access token from one of two grants."""

    PASSWORD = "password"
    REFRESH_TOKEN = "refresh_token"
    CLIENT_CREDENTIALS = "client_credentials"


class MessageState(StrEnum):
    """The states of a message. A fetched message is ``stored``, then ``processed`` or ``unreadable``. The row stays
    after ``deleted``.

    A ``failed`` message is fetched again, and becomes ``unreadable`` after several attempts. A ``gone`` message was
    deleted on the server before it was fetched. A ``too_big`` message is never fetched.
    """

    STORED = "stored"
    PROCESSED = "processed"
    FAILED = "failed"
    UNREADABLE = "unreadable"
    TOO_BIG = "too_big"
    GONE = "gone"
    DELETED = "deleted"


class Base(Tables, DeclarativeBase):
    """The tables of this plugin."""


class Account(Base):
    """A mailbox: one folder of one user of one server.

    ``secret`` is the name of the password or of the client's secret. ``auth_failures`` is the number of log-ins in a
    row that the server has refused. ``postponements`` is how often in a row the server was busy. Because
    of that, no poll connects before ``postponed_until``.
    """

    __tablename__ = "mail_accounts"
    __table_args__ = (
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        CheckConstraint("tls IN ('implicit', 'starttls', 'none')", name="tls"),
        CheckConstraint("auth IN ('password', 'refresh_token', 'client_credentials')", name="auth"),
        CheckConstraint("poll_seconds BETWEEN 10 AND 86400", name="poll_seconds"),
        CheckConstraint("state IN ('active', 'paused', 'auth_failed', 'deleting')", name="state"),
        CheckConstraint("auth = 'password' OR token_url IS NOT NULL AND client_id IS NOT NULL", name="token_url"),
        Index("mail_accounts_of_name", "name", unique=True, postgresql_where=text("state <> 'deleting'")),
        Index(
            "mail_accounts_of_mailbox",
            "host",
            "port",
            "username",
            "folder",
            unique=True,
            postgresql_where=text("state <> 'deleting'"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    host: Mapped[str]
    port: Mapped[int] = mapped_column(Integer)
    tls: Mapped[str]
    ca_file: Mapped[str | None]
    username: Mapped[str]
    auth: Mapped[str] = mapped_column(server_default=text("'password'"))
    secret: Mapped[str | None]
    token_url: Mapped[str | None]
    client_id: Mapped[str | None]
    scope: Mapped[str | None]
    folder: Mapped[str] = mapped_column(server_default=text("'INBOX'"))
    poll_seconds: Mapped[int] = mapped_column(Integer, server_default=text("60"))
    is_urgent: Mapped[bool] = mapped_column(server_default=text("false"))
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    reason: Mapped[str | None]
    auth_failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    postponed_until: Mapped[datetime | None]
    postponements: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    changed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Token(Base):
    """The OAuth2 tokens of an account, encrypted with ROTA_MAIL_KEY."""

    __tablename__ = "mail_tokens"

    account_id: Mapped[int] = mapped_column(ForeignKey("mail_accounts.id", ondelete="CASCADE"), primary_key=True)
    refresh_token: Mapped[bytes | None]
    access_token: Mapped[bytes | None]
    expires_at: Mapped[datetime | None]


class Folder(Base):
    """A folder of an account, with the position up to which it has been read.

    ``last_uid`` is the high-water mark: each message up to it has a row. ``generation`` grows whenever the server's
    UIDVALIDITY changes. A server may use one UIDVALIDITY twice, but a generation is never used again. ``number``
    identifies the folder in the keys of its objects.
    """

    __tablename__ = "mail_folders"

    account_id: Mapped[int] = mapped_column(ForeignKey("mail_accounts.id", ondelete="CASCADE"), primary_key=True)
    folder: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Identity())
    uidvalidity: Mapped[int]
    generation: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    last_uid: Mapped[int] = mapped_column(server_default=text("0"))


class Message(Base):
    """A message of a folder, once for each ``(account, folder, generation, uid)``.

    When a server renumbers the folder, the messages that still exist get their new numbers. Other messages keep the
    generation in which they were seen last. ``storage_key`` never changes. ``received_at`` is the server's
    INTERNALDATE, but at most a day after the poll. ``message_id`` is copied from the message and cut after 1,000
    characters.
    """

    __tablename__ = "mail_messages"
    __table_args__ = (
        CheckConstraint(
            "state IN ('stored', 'processed', 'failed', 'unreadable', 'too_big', 'gone', 'deleted')", name="state"
        ),
        UniqueConstraint("account_id", "folder", "generation", "uid", name=ONE_ROW),
        Index("mail_messages_of_content", "account_id", "sha256"),
        Index("mail_messages_failed", "account_id", "folder", postgresql_where=text("state = 'failed'")),
        Index("mail_messages_of_object", "storage_key", unique=True, postgresql_where=text("storage_key IS NOT NULL")),
        Index("mail_messages_unprocessed", "account_id", "id", postgresql_where=text("state = 'stored'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("mail_accounts.id"))
    folder: Mapped[str]
    generation: Mapped[int] = mapped_column(Integer)
    uidvalidity: Mapped[int]
    uid: Mapped[int]
    state: Mapped[str]
    size: Mapped[int]
    received_at: Mapped[datetime]
    sha256: Mapped[bytes | None]
    message_id: Mapped[str | None]
    storage_key: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    error: Mapped[str | None]
    #: The number of attempts to process the message.
    readings: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Content(Base):
    """The content of a processed message. ``message_id`` is the id of its row in the table of messages.

    ``recipients`` has lists of ``{"name", "address"}`` under ``to``, ``cc`` and ``reply_to``; ``attachments`` is a list
    of ``{"name", "content_type", "size", "is_inline"}``. ``automatic`` is the sign that a program sent the message.
    """

    __tablename__ = "mail_contents"

    message_id: Mapped[int] = mapped_column(ForeignKey("mail_messages.id", ondelete="CASCADE"), primary_key=True)
    sender_name: Mapped[str]
    sender: Mapped[str]
    recipients: Mapped[Any] = mapped_column(JSONB)
    subject: Mapped[str]
    in_reply_to: Mapped[str | None]
    reference_ids: Mapped[Any] = mapped_column(JSONB)
    date: Mapped[str]
    sent_at: Mapped[datetime | None]
    text: Mapped[str]
    attachments: Mapped[Any] = mapped_column(JSONB)
    automatic: Mapped[str | None]
    problems: Mapped[Any] = mapped_column(JSONB)
    processed_at: Mapped[datetime]


class Deletion(Base):
    """An object that must be deleted from the store. The row is deleted when the object is gone."""

    __tablename__ = "mail_deletions"

    storage_key: Mapped[str] = mapped_column(primary_key=True)
    asked_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
