"""Creates the tables of accounts with their tokens and folders, of messages, and of objects that must be deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

INSTANT = sa.DateTime(timezone=True)
TABLES = ["accounts", "tokens", "folders", "messages", "deletions"]
STATES = "state IN ('stored', 'processed', 'failed', 'unreadable', 'too_big', 'gone', 'deleted')"


def upgrade() -> None:
    create_accounts()
    create_tokens()
    create_folders()
    create_messages()
    op.create_table("mail_deletions", sa.Column("storage_key", sa.Text, primary_key=True), now("asked_at"))


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(f"mail_{table}")


def create_accounts() -> None:
    op.create_table(
        "mail_accounts",
        own_id(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("tls", sa.Text, nullable=False),
        sa.Column("ca_file", sa.Text),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("auth", sa.Text, nullable=False, server_default="password"),
        sa.Column("secret", sa.Text),
        sa.Column("token_url", sa.Text),
        sa.Column("client_id", sa.Text),
        sa.Column("scope", sa.Text),
        sa.Column("folder", sa.Text, nullable=False, server_default="INBOX"),
        sa.Column("poll_seconds", sa.Integer, nullable=False, server_default="60"),
        sa.Column("is_urgent", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("state", sa.Text, nullable=False, server_default="active"),
        sa.Column("reason", sa.Text),
        sa.Column("auth_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("postponed_until", INSTANT),
        sa.Column("postponements", sa.Integer, nullable=False, server_default="0"),
        now("created_at"),
        now("changed_at"),
        check("accounts", "port", "port BETWEEN 1 AND 65535"),
        check("accounts", "tls", "tls IN ('implicit', 'starttls', 'none')"),
        check("accounts", "auth", "auth IN ('password', 'refresh_token', 'client_credentials')"),
        check("accounts", "poll_seconds", "poll_seconds BETWEEN 10 AND 86400"),
        check("accounts", "state", "state IN ('active', 'paused', 'auth_failed', 'deleting')"),
        check("accounts", "token_url", "auth = 'password' OR token_url IS NOT NULL AND client_id IS NOT NULL"),
    )
    create_index("accounts", "of_name", "name", unique=True, where="state <> 'deleting'")
    mailbox = ("host", "port", "username", "folder")
    create_index("accounts", "of_mailbox", *mailbox, unique=True, where="state <> 'deleting'")


def create_tokens() -> None:
    op.create_table(
        "mail_tokens",
        of_account(ondelete="CASCADE", primary_key=True),
        sa.Column("refresh_token", sa.LargeBinary),
        sa.Column("access_token", sa.LargeBinary),
        sa.Column("expires_at", INSTANT),
    )


def create_folders() -> None:
    op.create_table(
        "mail_folders",
        of_account(ondelete="CASCADE", primary_key=True),
        sa.Column("folder", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("uidvalidity", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False, server_default="1"),
        sa.Column("last_uid", sa.BigInteger, nullable=False, server_default="0"),
    )


def create_messages() -> None:
    op.create_table(
        "mail_messages",
        own_id(),
        of_account(),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("uidvalidity", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("sha256", sa.LargeBinary),
        sa.Column("message_id", sa.Text),
        sa.Column("storage_key", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("error", sa.Text),
        now("created_at"),
        check("messages", "state", STATES),
        sa.UniqueConstraint("account_id", "folder", "generation", "uid", name="mail_messages_uid_key"),
    )
    create_index("messages", "of_content", "account_id", "sha256")
    create_index("messages", "failed", "account_id", "folder", where="state = 'failed'")


def own_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def of_account(*, ondelete: str | None = None, primary_key: bool = False) -> sa.Column[int]:
    account = sa.ForeignKey("mail_accounts.id", ondelete=ondelete)
    return sa.Column("account_id", sa.BigInteger, account, primary_key=primary_key, nullable=False)


def now(name: str) -> sa.Column[object]:
    return sa.Column(name, INSTANT, nullable=False, server_default=sa.text("now()"))


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=f"mail_{table}_{name}_check")


def create_index(table: str, name: str, *columns: str, unique: bool = False, where: str | None = None) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"mail_{table}_{name}", f"mail_{table}", [*columns], unique=unique, postgresql_where=only)
