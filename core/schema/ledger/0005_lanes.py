"""Indexes waiting runs by queue and job, so that a backlog of one job does not slow down the others.

Both indexes have only waiting runs, but creating them reads the whole table and blocks writes to it, for about a second
with a million runs of history.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

WAITING = "state IN ('queued', 'retrying')"
CONDITIONS = {
    "rota_runs_unsent": f"{WAITING} AND sent_at IS NULL",
    "rota_runs_sent": f"{WAITING} AND sent_at IS NOT NULL",
}
INSTANTS = {"rota_runs_unsent": "due_at", "rota_runs_sent": "sent_at"}


def upgrade() -> None:
    replace_indexes("queue", "job")


def downgrade() -> None:
    replace_indexes()


def replace_indexes(*lane: str) -> None:
    for name, condition in CONDITIONS.items():
        op.drop_index(name, "rota_runs")
        op.create_index(name, "rota_runs", [*lane, INSTANTS[name]], postgresql_where=condition)
