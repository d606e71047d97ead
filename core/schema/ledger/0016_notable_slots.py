"""Adds an index of the slots that did not simply succeed in time, from which the strips of schedules are drawn.

Creating the index reads the whole table and blocks writes to it: for about a second with a million runs of history. A
run that succeeds in time never enters the index.
"""

from alembic import op

revision = "0016"
down_revision = "0013"

IS_NOTABLE = (
    "slot IS NOT NULL AND (state IN ('retrying', 'dead', 'skipped', 'missed', 'orphaned') OR attempt > 1 "
    "OR started_at - slot > interval '30 seconds')"
)


def upgrade() -> None:
    op.execute(f"CREATE INDEX rota_runs_notable ON rota_runs (job, slot) WHERE {IS_NOTABLE}")


def downgrade() -> None:
    op.execute("DROP INDEX rota_runs_notable")
