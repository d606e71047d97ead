"""Adds an index of the slots that did not simply succeed in time, from which the strips of schedules are drawn.

Creating the index reads the whole table and blocks writes to it: for about a second with a million runs of history. A
run that succeeds in time never enters the index.

The next migrations, in the same transaction, need a lock that also blocks reads. The lock is taken at the beginning, so
that a transaction which holds the table is noticed before an index is built.
"""

from alembic import op

revision = "0016"
down_revision = "0013"

IS_NOTABLE = (
    "slot IS NOT NULL AND (state IN ('retrying', 'dead', 'skipped', 'missed', 'orphaned') OR attempt > 1 "
    "OR started_at - slot > interval '30 seconds')"
)


def upgrade() -> None:
    op.execute("LOCK TABLE rota_runs IN ACCESS EXCLUSIVE MODE")
    op.execute(f"CREATE INDEX rota_runs_notable ON rota_runs (job, slot) WHERE {IS_NOTABLE}")


def downgrade() -> None:
    op.execute("DROP INDEX rota_runs_notable")
