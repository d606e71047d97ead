"""Records the reserved threads of each worker process, which ``rota workers`` shows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("rota_processes", sa.Column("reserved", JSONB))


def downgrade() -> None:
    op.drop_column("rota_processes", "reserved")
