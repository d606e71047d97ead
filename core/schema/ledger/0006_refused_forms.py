"""Adds ``refused_by``, which lists the forms of a job that the arguments of a run do not fit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("rota_runs", sa.Column("refused_by", ARRAY(sa.Text)))


def downgrade() -> None:
    op.drop_column("rota_runs", "refused_by")
