"""Leaves free space for updates of runs, and vacuums after a fixed share of dead rows."""

from alembic import op

revision = "0004"
down_revision = "0003"

#: Inserts leave a part of each page free, so that the new version of a row fits on the same page. Vacuum runs when one
#: row in a hundred is dead. With PostgreSQL's default of one in five, a table of ten million runs would have two
#: million dead rows before a vacuum.
SETTINGS = {
    "fillfactor": 80,
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0.02,
    "autovacuum_analyze_threshold": 1000,
}


def upgrade() -> None:
    settings = ", ".join(f"{name} = {value}" for name, value in SETTINGS.items())
    op.execute(f"ALTER TABLE rota_runs SET ({settings})")


def downgrade() -> None:
    op.execute(f"ALTER TABLE rota_runs RESET ({', '.join(SETTINGS)})")
