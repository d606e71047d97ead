"""A run is updated twice in its life: leave room beside it, and clean up after it however long history is."""

from alembic import op

revision = "0004"
down_revision = "0003"

#: Inserts leave a part of each page free, so that the new version of a row lies beside the old one. Vacuum comes at one
#: dead row in a hundred: at PostgreSQL's one in five, millions of them would lie between ten million finished runs.
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
