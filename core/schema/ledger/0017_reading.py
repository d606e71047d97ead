"""Lets people find the runs of a key, and the runs in rare states, beside a long history; and adds counts of runs.

There is one index less than before. ``rota_runs_slot`` also has requests with a key, from their end on, and so neither
the insertion nor the claim of a run writes more. ``rota_runs_unhappy`` and ``rota_runs_unhappy_of_job`` replace three
indexes; a run that succeeds has no entry in them.

Creating the indexes reads the whole table three times and blocks the table: for a few seconds with a million runs of
history.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0017"
down_revision = "0015"

INSTANT = TIMESTAMP(timezone=True)
IS_UNHAPPY = "state IN ('dead', 'skipped', 'missed', 'orphaned')"
HAS_KEY = "slot IS NOT NULL OR (key <> '' AND finished_at IS NOT NULL)"
FORMER = {
    "rota_runs_orphaned": "(job, id) WHERE state = 'orphaned'",
    "rota_runs_dead": "(id) WHERE state = 'dead'",
    "rota_runs_unstarted": "(state, id) WHERE state IN ('skipped', 'missed')",
}
PRESENT = {
    "rota_runs_unhappy": f"(state, finished_at, id) WHERE {IS_UNHAPPY}",
    "rota_runs_unhappy_of_job": f"(job, state, finished_at, id) WHERE {IS_UNHAPPY}",
}


def upgrade() -> None:
    replace_slots(f"INCLUDE (id) WHERE {HAS_KEY}")
    replace_all(FORMER, PRESENT)
    op.create_table(
        "rota_run_counts",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("minute", INSTANT, primary_key=True),
        sa.Column("outcome", sa.Text, primary_key=True),
        sa.Column("took", sa.SmallInteger, primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("took_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("rota_run_counts_minute", "rota_run_counts", ["minute"])


def downgrade() -> None:
    op.drop_table("rota_run_counts")
    replace_all(PRESENT, FORMER)
    replace_slots("WHERE slot IS NOT NULL")


def replace_slots(rest: str) -> None:
    op.execute(f"CREATE UNIQUE INDEX rota_runs_slot_new ON rota_runs (job, key, slot) {rest}")
    op.execute("DROP INDEX rota_runs_slot")
    op.execute("ALTER INDEX rota_runs_slot_new RENAME TO rota_runs_slot")


def replace_all(former: dict[str, str], present: dict[str, str]) -> None:
    for name, definition in present.items():
        op.execute(f"CREATE INDEX {name} ON rota_runs {definition}")
    for name in former:
        op.execute(f"DROP INDEX {name}")
