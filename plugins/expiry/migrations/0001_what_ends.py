"""Creates the tables of tasks and notifications, coupons, invitation codes, and points with their ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

PREFIX = "expiry_"
INSTANT = sa.DateTime(timezone=True)
TABLES = ["tasks", "notifications", "coupons", "invitation_codes", "point_balances", "point_lots", "point_entries"]


def upgrade() -> None:
    create_tasks()
    create_notifications()
    create_codes("coupons")
    create_codes("invitation_codes")
    create_point_balances()
    create_point_lots()
    create_point_entries()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(PREFIX + table)


def create_tasks() -> None:
    op.create_table(
        "expiry_tasks",
        own_id(),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="open"),
        sa.Column("opened_at", INSTANT, nullable=False),
        sa.Column("deadline_at", INSTANT, nullable=False),
        sa.Column("completed_at", INSTANT),
        sa.Column("cancelled_at", INSTANT),
        sa.Column("cancel_reason", sa.Text),
        check("tasks", "state", "state IN ('open', 'completed', 'cancelled')"),
        check("tasks", "cancel_reason", "cancel_reason IN ('deadline_passed', 'withdrawn')"),
        check(
            "tasks",
            "cancelled",
            "state = 'cancelled' AND cancelled_at IS NOT NULL AND cancel_reason IS NOT NULL"
            " OR state <> 'cancelled' AND cancelled_at IS NULL AND cancel_reason IS NULL",
        ),
        check("tasks", "completed", "(state = 'completed') = (completed_at IS NOT NULL)"),
        is_a_date("tasks", "deadline_at"),
    )
    create_index("tasks", "due", "deadline_at", "id", where="state = 'open'")
    create_index("tasks", "broken", "id", where="state = 'open' AND deadline_at IS NULL")


def create_notifications() -> None:
    op.create_table(
        "expiry_notifications",
        own_id(),
        sa.Column("task_id", sa.BigInteger, sa.ForeignKey("expiry_tasks.id"), nullable=False),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
    )
    create_index("notifications", "once", "task_id", "kind", unique=True)
    create_index("notifications", "of_owner", "owner_id", "id")


def create_codes(table: str) -> None:
    op.create_table(
        PREFIX + table,
        own_id(),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="active"),
        sa.Column("ends_at", INSTANT, nullable=False),
        sa.Column("used_at", INSTANT),
        sa.Column("expired_at", INSTANT),
        sa.UniqueConstraint("code", name=f"{PREFIX}{table}_code_key"),
        check(table, "state", "state IN ('active', 'used', 'expired')"),
        check(table, "used", "(state = 'used') = (used_at IS NOT NULL)"),
        check(table, "expired", "(state = 'expired') = (expired_at IS NOT NULL)"),
        is_a_date(table, "ends_at"),
    )
    create_index(table, "due", "ends_at", "id", where="state = 'active'")
    create_index(table, "broken", "id", where="state = 'active' AND ends_at IS NULL")


def create_point_balances() -> None:
    op.create_table(
        "expiry_point_balances",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("points", sa.BigInteger, nullable=False),
        check("point_balances", "points", "points >= 0"),
    )


def create_point_lots() -> None:
    op.create_table(
        "expiry_point_lots",
        own_id(),
        of_user(),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("remaining", sa.BigInteger, nullable=False),
        sa.Column("granted_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        check("point_lots", "points", "points > 0"),
        check("point_lots", "remaining", "remaining BETWEEN 0 AND points"),
        is_a_date("point_lots", "expires_at"),
    )
    create_index("point_lots", "due", "expires_at", "id", where="remaining > 0")
    create_index("point_lots", "of_user", "user_id", "expires_at", "id", where="remaining > 0")
    create_index("point_lots", "broken", "id", where="remaining < 0 OR remaining IS NULL OR expires_at IS NULL")


def create_point_entries() -> None:
    op.create_table(
        "expiry_point_entries",
        own_id(),
        of_user(),
        sa.Column("lot_id", sa.BigInteger, sa.ForeignKey("expiry_point_lots.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        check("point_entries", "kind", "kind IN ('granted', 'spent', 'expired')"),
        check("point_entries", "points", "points <> 0 AND (points > 0) = (kind = 'granted')"),
    )
    create_index("point_entries", "of_user", "user_id", "id")
    create_index("point_entries", "once", "lot_id", "kind", unique=True, where="kind <> 'spent'")


def own_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def of_user() -> sa.Column[str]:
    return sa.Column("user_id", sa.Text, sa.ForeignKey("expiry_point_balances.user_id"), nullable=False)


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=f"{PREFIX}{table}_{name}_check")


def is_a_date(table: str, column: str) -> sa.CheckConstraint:
    years = f"{column} >= '0001-01-01 00:00:00+00' AND {column} < '10000-01-01 00:00:00+00'"
    return check(table, column, years)


def create_index(table: str, name: str, *columns: str, unique: bool = False, where: str | None = None) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"{PREFIX}{table}_{name}", PREFIX + table, [*columns], unique=unique, postgresql_where=only)
