"""Adds the user of an invitation code and the reference of a points entry, and makes tasks deletable.

Both columns may be empty, since the previous release may still be running and does not set them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

OF_TASK = "expiry_notifications_task_id_fkey"
OF_REFERENCE = "expiry_point_entries_of_reference"


def upgrade() -> None:
    op.add_column("expiry_invitation_codes", sa.Column("used_by", sa.Text))
    op.add_column("expiry_point_entries", sa.Column("reference", sa.Text))
    op.create_index(
        OF_REFERENCE,
        "expiry_point_entries",
        ["user_id", "reference", "kind", "lot_id"],
        unique=True,
        postgresql_where=sa.text("reference IS NOT NULL"),
    )
    refer_to_tasks(ondelete="CASCADE")


def downgrade() -> None:
    refer_to_tasks(ondelete=None)
    op.drop_index(OF_REFERENCE)
    op.drop_column("expiry_point_entries", "reference")
    op.drop_column("expiry_invitation_codes", "used_by")


def refer_to_tasks(ondelete: str | None) -> None:
    op.drop_constraint(OF_TASK, "expiry_notifications")
    op.create_foreign_key(OF_TASK, "expiry_notifications", "expiry_tasks", ["task_id"], ["id"], ondelete=ondelete)
