"""Creates the tables of tasks and their files, time slots, the flea market, experts and users' statistics, and triggers
that mark changes.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

PREFIX = "maintenance_"
INSTANT = sa.DateTime(timezone=True)
ZERO = sa.text("0")
EMPTY = sa.text("''")
TABLES = [
    "time_slots",
    "tasks",
    "task_files",
    "reviews",
    "user_statistics",
    "changed_users",
    "flea_market_items",
    "flea_market_images",
    "task_experts",
    "expert_inquiries",
    "bookmarks",
]

#: Marks all users whose figures a change of tasks affects: the users who posted or took a task, before or after the
#: change.
MARK_USERS_OF_TASKS = """
    CREATE FUNCTION maintenance_mark_users_of_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO maintenance_changed_users (user_id)
            SELECT DISTINCT who.user_id FROM new_rows, LATERAL (VALUES (poster_id), (taker_id)) AS who (user_id)
            WHERE who.user_id IS NOT NULL;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO maintenance_changed_users (user_id)
            SELECT DISTINCT who.user_id FROM old_rows, LATERAL (VALUES (poster_id), (taker_id)) AS who (user_id)
            WHERE who.user_id IS NOT NULL;
        ELSE
            INSERT INTO maintenance_changed_users (user_id)
            SELECT DISTINCT who.user_id FROM old_rows AS was FULL JOIN new_rows AS become USING (id),
                LATERAL (VALUES (was.poster_id), (was.taker_id), (become.poster_id), (become.taker_id)) AS who (user_id)
            WHERE who.user_id IS NOT NULL
              AND (was.poster_id, was.taker_id, was.state)
                  IS DISTINCT FROM (become.poster_id, become.taker_id, become.state);
        END IF;
        RETURN NULL;
    END $$
"""
MARK_USERS_OF_REVIEWS = """
    CREATE FUNCTION maintenance_mark_users_of_reviews() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO maintenance_changed_users (user_id) SELECT DISTINCT user_id FROM new_rows;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO maintenance_changed_users (user_id) SELECT DISTINCT user_id FROM old_rows;
        ELSE
            INSERT INTO maintenance_changed_users (user_id)
            SELECT DISTINCT who.user_id FROM old_rows AS was FULL JOIN new_rows AS become USING (id),
                LATERAL (VALUES (was.user_id), (become.user_id)) AS who (user_id)
            WHERE who.user_id IS NOT NULL
              AND (was.user_id, was.rating) IS DISTINCT FROM (become.user_id, become.rating);
        END IF;
        RETURN NULL;
    END $$
"""
#: TRUNCATE does not report the deleted rows, so all users who have figures are marked.
MARK_ALL_USERS = """
    CREATE FUNCTION maintenance_mark_all_users() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO maintenance_changed_users (user_id) SELECT user_id FROM maintenance_user_statistics;
        RETURN NULL;
    END $$
"""
SEEN_BY = {
    "INSERT": "REFERENCING NEW TABLE AS new_rows",
    "UPDATE": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "REFERENCING OLD TABLE AS old_rows",
}
MARKED = ["tasks", "reviews"]


def upgrade() -> None:
    create_time_slots()
    create_tasks()
    create_reviews()
    create_statistics()
    create_flea_market()
    create_experts()
    op.create_table(
        "maintenance_bookmarks",
        sa.Column("sweep", sa.Text, primary_key=True),
        sa.Column("place", JSONB, nullable=False),
    )
    create_triggers()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(PREFIX + table)
    for function in ("mark_users_of_tasks", "mark_users_of_reviews", "mark_all_users"):
        op.execute(f"DROP FUNCTION {PREFIX}{function}()")


def create_time_slots() -> None:
    op.create_table(
        "maintenance_time_slots",
        own_id(),
        sa.Column("expert_id", sa.Text, nullable=False),
        sa.Column("starts_at", INSTANT, nullable=False),
        sa.Column("ends_at", INSTANT, nullable=False),
    )
    create_index("time_slots", "old", "ends_at", "id")


def create_tasks() -> None:
    op.create_table(
        "maintenance_tasks",
        own_id(),
        sa.Column("poster_id", sa.Text, nullable=False),
        sa.Column("taker_id", sa.Text),
        sa.Column("category", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("state", sa.Text, nullable=False, server_default="open"),
        sa.Column("time_slot_id", sa.BigInteger, sa.ForeignKey("maintenance_time_slots.id", ondelete="SET NULL")),
        sa.Column("deadline_at", INSTANT),
        sa.Column("completed_at", INSTANT),
        sa.Column("cancelled_at", INSTANT),
        sa.Column("files_deletion_began_at", INSTANT),
        sa.Column("files_deleted_at", INSTANT),
        sa.CheckConstraint(
            "state IN ('open', 'taken', 'completed', 'cancelled')", name="maintenance_tasks_state_check"
        ),
        sa.CheckConstraint(
            "(state = 'completed') = (completed_at IS NOT NULL)", name="maintenance_tasks_completed_check"
        ),
        sa.CheckConstraint(
            "(state = 'cancelled') = (cancelled_at IS NOT NULL)", name="maintenance_tasks_cancelled_check"
        ),
        sa.CheckConstraint(
            "files_deleted_at IS NULL OR files_deletion_began_at IS NOT NULL",
            name="maintenance_tasks_files_deleted_check",
        ),
    )
    kept = "files_deletion_began_at IS NULL"
    going = "files_deletion_began_at IS NOT NULL AND files_deleted_at IS NULL"
    create_index("tasks", "completed", "completed_at", "id", where=f"state = 'completed' AND {kept}")
    create_index("tasks", "cancelled", "cancelled_at", "id", where=f"state = 'cancelled' AND {kept}")
    create_index("tasks", "past_deadline", "deadline_at", "id", where=f"state IN ('open', 'taken') AND {kept}")
    create_index("tasks", "files_going", "id", where=going)
    create_index("tasks", "of_poster", "poster_id")
    create_index("tasks", "of_taker", "taker_id", where="taker_id IS NOT NULL")
    create_index("tasks", "of_slot", "time_slot_id", where="time_slot_id IS NOT NULL")
    op.create_table(
        "maintenance_task_files",
        sa.Column("task_id", sa.BigInteger, sa.ForeignKey("maintenance_tasks.id"), primary_key=True),
        sa.Column("path", sa.LargeBinary, primary_key=True),
    )


def create_reviews() -> None:
    op.create_table(
        "maintenance_reviews",
        own_id(),
        sa.Column("task_id", sa.BigInteger, sa.ForeignKey("maintenance_tasks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("rating", sa.SmallInteger, nullable=False),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name="maintenance_reviews_rating_check"),
    )
    create_index("reviews", "of_user", "user_id")
    create_index("reviews", "of_task", "task_id")


def create_statistics() -> None:
    op.create_table(
        "maintenance_user_statistics",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("tasks_posted", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("tasks_taken", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("tasks_completed", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("completion_rate", sa.Numeric(5, 4)),
        sa.Column("average_rating", sa.Numeric(3, 2)),
        sa.Column("updated_at", INSTANT, nullable=False),
    )
    op.create_table("maintenance_changed_users", own_id(), sa.Column("user_id", sa.Text, nullable=False))


def create_flea_market() -> None:
    op.create_table(
        "maintenance_flea_market_items",
        own_id(),
        sa.Column("seller_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("refreshed_at", INSTANT, nullable=False),
        sa.Column("deletion_began_at", INSTANT),
    )
    create_index("flea_market_items", "stale", "refreshed_at", "id", where="deletion_began_at IS NULL")
    create_index("flea_market_items", "going", "id", where="deletion_began_at IS NOT NULL")
    op.create_table(
        "maintenance_flea_market_images",
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("maintenance_flea_market_items.id"), primary_key=True),
        sa.Column("path", sa.LargeBinary, primary_key=True),
    )


def create_experts() -> None:
    op.create_table(
        "maintenance_task_experts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("is_featured", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("bio", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("average_response_time", sa.Interval),
    )
    create_index("task_experts", "featured", "id", where="is_featured")
    op.create_table(
        "maintenance_expert_inquiries",
        own_id(),
        sa.Column(
            "expert_id", sa.Text, sa.ForeignKey("maintenance_task_experts.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("asked_at", INSTANT, nullable=False),
        sa.Column("answered_at", INSTANT),
    )
    create_index("expert_inquiries", "answered", "expert_id", where="answered_at IS NOT NULL")


def create_triggers() -> None:
    """Create one trigger for each kind of statement, since each kind has different transition tables."""
    for function in (MARK_USERS_OF_TASKS, MARK_USERS_OF_REVIEWS, MARK_ALL_USERS):
        op.execute(function)
    for table in MARKED:
        for statement, rows in SEEN_BY.items():
            create_trigger(table, statement, rows, f"mark_users_of_{table}")
        create_trigger(table, "TRUNCATE", "", "mark_all_users")


def create_trigger(table: str, statement: str, rows: str, function: str) -> None:
    name = f"{PREFIX}{table}_on_{statement.lower()}"
    op.execute(
        f"CREATE TRIGGER {name} AFTER {statement} ON {PREFIX}{table} {rows} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {PREFIX}{function}()"
    )


def own_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def create_index(table: str, name: str, *columns: str, where: str | None = None) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"{PREFIX}{table}_{name}", PREFIX + table, [*columns], postgresql_where=only)
