"""Creates the tables of teams with their seats, of requests to the gateway, and of the people who want seats."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

INSTANT = sa.DateTime(timezone=True)
TABLES = [
    "teams", "seats", "requests", "codes", "batches", "batch_problems", "waiting", "redemptions", "moves", "orphans",
    "counter_batches",
]  # fmt: skip
LIVE = "state IN ('reserved', 'inviting', 'invited', 'member')"


def upgrade() -> None:
    create_teams()
    create_seats()
    create_requests()
    create_codes()
    create_batches()
    create_waiting()
    create_redemptions()
    create_moves()
    create_orphans()
    create_counter_batches()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(f"invites_{table}")


def create_teams() -> None:
    op.create_table(
        "invites_teams",
        own_id(),
        words("name", unique=True),
        words("gateway_ref", unique=True),
        words("pool"),
        number("seats"),
        number("taken", default=0),
        words("state", default="open"),
        sa.Column("closed_until", INSTANT),
        now("created_at"),
        check("teams", "taken", "seats >= 0 AND taken BETWEEN 0 AND seats"),
        check("teams", "state", "state IN ('open', 'closed')"),
    )
    create_index("teams", "of_pool", "pool", "id")


def create_seats() -> None:
    op.create_table(
        "invites_seats",
        own_id(),
        of("teams", "team_id"),
        words("pool"),
        words("email"),
        words("state", default="reserved"),
        sa.Column("is_target", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("expires_at", INSTANT),
        now("created_at"),
        now("changed_at"),
        check("seats", "state", "state IN ('reserved', 'inviting', 'invited', 'member', 'removing', 'freed')"),
    )
    create_index("seats", "of_team", "team_id", "email", unique=True, where="state <> 'freed'")
    create_index("seats", "of_person", "pool", "email", unique=True, where="state <> 'freed' AND NOT is_target")
    create_index("seats", "expiring", "expires_at", "id", where=LIVE)


def create_requests() -> None:
    op.create_table(
        "invites_requests",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
        words("kind"),
        of("seats", "seat_id"),
        sa.Column("body_hash", sa.LargeBinary),
        words("state", default="new"),
        number("attempts", default=0),
        sa.Column("last_status", sa.Integer),
        sa.Column("problem", sa.Text),
        now("created_at"),
        sa.Column("sent_at", INSTANT),
        now("changed_at"),
        check("requests", "kind", "kind IN ('invite', 'remove')"),
        check("requests", "state", "state IN ('new', 'sent', 'unknown', 'confirmed', 'refused')"),
    )
    create_index("requests", "open", "seat_id", "kind", unique=True, where="state IN ('new', 'sent', 'unknown')")
    create_index("requests", "of_seat", "seat_id")
    create_index("requests", "unknown", "changed_at", where="state IN ('sent', 'unknown')")


def create_codes() -> None:
    op.create_table(
        "invites_codes",
        own_id(),
        sa.Column("sha256", sa.LargeBinary, nullable=False, unique=True),
        words("pool"),
        number("uses"),
        number("used", default=0),
        sa.Column("counted", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("days", sa.Integer),
        sa.Column("expires_at", INSTANT),
        now("created_at"),
        check("codes", "used", "used BETWEEN 0 AND uses"),
        check("codes", "days", "days > 0"),
    )


def create_batches() -> None:
    op.create_table(
        "invites_batches",
        own_id(),
        words("pool"),
        number("lines"),
        sa.Column("days", sa.Integer),
        now("created_at"),
    )
    op.create_table(
        "invites_batch_problems",
        of("batches", "batch_id", primary_key=True, ondelete="CASCADE"),
        sa.Column("line", sa.Integer, primary_key=True),
        words("problem"),
    )


def create_waiting() -> None:
    op.create_table(
        "invites_waiting",
        own_id(),
        words("email"),
        words("pool"),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        words("state", default="waiting"),
        sa.Column("days", sa.Integer),
        of("batches", "batch_id", nullable=True),
        of("seats", "seat_id", nullable=True),
        sa.Column("asked_at", INSTANT, nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        check("waiting", "state", "state IN ('waiting', 'placed', 'left')"),
    )
    create_index("waiting", "of_person", "pool", "email", unique=True, where="state = 'waiting'")
    create_index("waiting", "in_order", "pool", sa.text("priority DESC"), "id", where="state = 'waiting'")
    for whose in ("batch", "seat"):
        create_index("waiting", f"of_{whose}", f"{whose}_id", where=f"{whose}_id IS NOT NULL")


def create_redemptions() -> None:
    op.create_table(
        "invites_redemptions",
        own_id(),
        of("codes", "code_id"),
        words("email"),
        of("waiting", "waiting_id"),
        sa.Column("redeemed_at", INSTANT, nullable=False),
        sa.UniqueConstraint("code_id", "email", name="invites_redemptions_code_id_key"),
    )


def create_moves() -> None:
    op.create_table(
        "invites_moves",
        own_id(),
        of("seats", "from_seat_id"),
        of("seats", "to_seat_id", unique=True),
        words("state", default="inviting"),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        check("moves", "state", "state IN ('inviting', 'removing', 'done', 'failed')"),
    )
    create_index("moves", "open", "from_seat_id", unique=True, where="state IN ('inviting', 'removing')")


def create_orphans() -> None:
    op.create_table(
        "invites_orphans",
        own_id(),
        of("teams", "team_id"),
        words("email"),
        words("state", default="suspected"),
        sa.Column("first_seen_at", INSTANT, nullable=False),
        sa.Column("last_seen_at", INSTANT, nullable=False),
        number("sightings", default=1),
        sa.Column("decided_by", sa.Text),
        check("orphans", "state", "state IN ('suspected', 'confirmed', 'kept', 'removed')"),
        check("orphans", "sightings", "sightings > 0"),
    )
    create_index("orphans", "of_team", "team_id", "email", unique=True, where="state <> 'removed'")


def create_counter_batches() -> None:
    op.create_table(
        "invites_counter_batches",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("counted", sa.BigInteger, nullable=False),
        sa.Column("added_at", INSTANT, nullable=False),
    )
    create_index("counter_batches", "added", "added_at")


def own_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def words(name: str, *, unique: bool = False, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, unique=unique, server_default=default)


def number(name: str, *, default: int | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=None if default is None else str(default))


def of(
    table: str,
    name: str,
    *,
    nullable: bool = False,
    unique: bool = False,
    primary_key: bool = False,
    ondelete: str | None = None,
) -> sa.Column[int]:
    key = sa.ForeignKey(f"invites_{table}.id", ondelete=ondelete)
    return sa.Column(name, sa.BigInteger, key, nullable=nullable, unique=unique, primary_key=primary_key)


def now(name: str) -> sa.Column[object]:
    return sa.Column(name, INSTANT, nullable=False, server_default=sa.text("now()"))


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=f"invites_{table}_{name}_check")


def create_index(
    table: str, name: str, *columns: str | sa.TextClause, unique: bool = False, where: str | None = None
) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"invites_{table}_{name}", f"invites_{table}", [*columns], unique=unique, postgresql_where=only)
