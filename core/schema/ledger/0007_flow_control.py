"""Adds columns and tables for flow control, cancellation and the history of attempts.

A run that waits for another run or for a limit is *parked*: its ``sent_at`` is ``infinity``, so no dispatcher sends it
or treats it as lost. When the run before it has ended, the process of that run wakes it. The new indexes contain only
runs that use these features. Creating them reads the whole table and blocks writes to it: for about a second with a
million runs of history.

A constraint protects requests during the deploy. A worker of the previous release skips a request that must wait. With
the constraint, that worker's claim fails and changes nothing, and the run stays queued for a worker of this release.
Another constraint protects runs with limits, since a claim of the previous release does not check limits: a claim that
has checked them writes its token to ``limits_token``, and no other claim can set the run to ``running``. A third
constraint keeps a claim of the previous release from starting a run whose deadline has passed.

A trigger ends a cancelled run when a process of this or the previous release releases, recovers or fails it. So a
cancelled run never starts again. The trigger is executed only for statements that set ``sent_at``. Statements that
start a run or record its success do not set ``sent_at``. Before a trigger, PostgreSQL locks each row once more, which
would take about a tenth of its time for every run.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0007"
down_revision = "0006"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")
WAITING = "state IN ('queued', 'retrying')"
PARKED = f"{WAITING} AND sent_at = 'infinity'"
UNSENT = f"{WAITING} AND sent_at IS NULL"
URGENT_SENT = f"{WAITING} AND sent_at IS NOT NULL AND priority > 0"
CALLED = f"{WAITING} AND sent_at < 'infinity'"
COLUMNS: list[sa.Column[Any]] = [
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("limits", ARRAY(sa.Text)),
    sa.Column("limits_declared", ARRAY(sa.Text)),
    sa.Column("limits_token", sa.BigInteger),
    sa.Column("waits_for", sa.Text),
    sa.Column("expires_at", INSTANT),
    sa.Column("laters", sa.Integer),
    sa.Column("later_since", INSTANT),
    sa.Column("subject", sa.Text),
    sa.Column("parent_id", sa.BigInteger),
]
INDEXES = {
    "rota_runs_turn": ("job, key, due_at, id", f"{WAITING} AND (exclusive OR key <> '')"),
    "rota_runs_parked": ("job, key, priority", f"{PARKED} AND waits_for IS NULL"),
    "rota_runs_limited": ("waits_for, priority DESC, due_at, id", f"{PARKED} AND waits_for IS NOT NULL"),
    "rota_runs_called": ("waits_for, sent_at", f"{CALLED} AND waits_for IS NOT NULL"),
    "rota_runs_urgent": ("queue, job, priority, due_at", f"{UNSENT} AND priority > 0"),
    "rota_runs_urgent_sent": ("queue, job, priority, sent_at", URGENT_SENT),
    "rota_runs_keys": ("queue, job, key, due_at", f"{UNSENT} AND key <> ''"),
    "rota_runs_expiring": ("expires_at", "state = 'queued' AND expires_at IS NOT NULL"),
    "rota_runs_children": ("parent_id, id", "parent_id IS NOT NULL"),
    "rota_runs_unstarted": ("state, id", "state IN ('skipped', 'missed')"),
}
LIMITS_ARE_KEPT = "state <> 'running' OR limits IS NULL OR limits_token IS NOT DISTINCT FROM token"
#: A deadline applies only to the first start. A run that was started or retried before has an error or the time of the
#: retry.
STARTS_IN_TIME = (
    "expires_at IS NULL OR state <> 'running' OR started_at < expires_at OR attempt > 1 OR error IS NOT NULL "
    "OR retried_at IS NOT NULL"
)
#: The constraint does not apply to requests that were skipped before this migration.
REQUESTS_WAIT = """
    DO $$ BEGIN
        EXECUTE format(
            'ALTER TABLE rota_runs ADD CONSTRAINT rota_runs_requests_wait '
            'CHECK (NOT (slot IS NULL AND state = ''skipped'' AND reason = ''overlap'' AND finished_at > %L))',
            clock_timestamp());
    END $$
"""

#: The run's row is locked before the mark of its cancellation, as in a cancel. The schema is named, since a job may set
#: any search_path.
END_CANCELLED = """
    CREATE FUNCTION rota_end_cancelled_run() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        said text;
    BEGIN
        EXECUTE format(
            'DELETE FROM %I.rota_cancels WHERE run_id = $1 '
            'RETURNING left(concat_ws('': '', ''by '' || asked_by, reason), 2000)',
            TG_TABLE_SCHEMA) INTO said USING OLD.id;
        IF said IS NOT NULL THEN
            NEW.state := 'dead';
            NEW.reason := 'cancelled';
            NEW.error := said;
            NEW.former_state := OLD.state;
            NEW.former_reason := OLD.reason;
            NEW.attempt := OLD.attempt;
            NEW.crashes := OLD.crashes;
            NEW.process_id := NULL;
            NEW.sent_at := NULL;
            NEW.due_at := OLD.due_at;
            NEW.finished_at := clock_timestamp();
        END IF;
        RETURN NEW;
    END $$
"""
HANDED_BACK = """
    CREATE TRIGGER rota_end_cancelled_run BEFORE UPDATE OF sent_at ON rota_runs FOR EACH ROW
    WHEN (OLD.state = 'running' AND NEW.state IN ('queued', 'retrying', 'dead'))
    EXECUTE FUNCTION rota_end_cancelled_run()
"""


def upgrade() -> None:
    for column in COLUMNS:
        op.add_column("rota_runs", column)
    op.create_check_constraint("rota_runs_priority", "rota_runs", "priority BETWEEN 0 AND 9")
    op.create_check_constraint("rota_runs_limits", "rota_runs", LIMITS_ARE_KEPT)
    op.create_check_constraint("rota_runs_starts_in_time", "rota_runs", STARTS_IN_TIME)
    for name, (columns, condition) in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON rota_runs ({columns}) WHERE {condition}")
    op.execute(REQUESTS_WAIT)
    op.add_column("rota_processes", sa.Column("threads", sa.Integer))
    op.create_table(
        "rota_attempts",
        sa.Column("run_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("started_at", INSTANT),
        sa.Column("ended_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("worker", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("log", sa.Text),
    )
    op.create_table(
        "rota_cancels",
        sa.Column("run_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("process_id", sa.BigInteger),
        sa.Column("asked_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
    )
    op.execute(END_CANCELLED)
    op.execute(HANDED_BACK)
    op.add_column("rota_releases", sa.Column("limits", JSONB))
    op.create_table(
        "rota_limits",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("declared", sa.Text, nullable=False),
        sa.Column("holders", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("tokens", sa.Float),
        sa.Column("used_at", INSTANT, nullable=False),
        sa.Column("full_at", INSTANT),
    )
    op.create_table(
        "rota_closings",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("until", INSTANT, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("closed_at", INSTANT, nullable=False, server_default=NOW),
    )
    op.create_index("rota_closings_name", "rota_closings", ["name", "until"])
    op.create_table(
        "rota_departures",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("process_id", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("queues", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("left_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("rota_departures_left", "rota_departures", ["left_at"])


def downgrade() -> None:
    for table in ("rota_departures", "rota_closings", "rota_limits", "rota_cancels", "rota_attempts"):
        op.drop_table(table)
    op.drop_column("rota_releases", "limits")
    op.drop_column("rota_processes", "threads")
    op.execute("DROP TRIGGER rota_end_cancelled_run ON rota_runs")
    op.execute("DROP FUNCTION rota_end_cancelled_run()")
    op.drop_constraint("rota_runs_requests_wait", "rota_runs")
    for name in INDEXES:
        op.drop_index(name, "rota_runs")
    op.drop_constraint("rota_runs_limits", "rota_runs")
    op.drop_constraint("rota_runs_starts_in_time", "rota_runs")
    op.drop_constraint("rota_runs_priority", "rota_runs")
    for column in reversed(COLUMNS):
        op.drop_column("rota_runs", column.name)
