"""Replaces constraints that only claims of older releases can break by triggers.

PostgreSQL parses each CHECK constraint of a table once per statement, whatever the statement changes: a fifth of what
the success of a run took. A trigger is parsed only if the statement sets its columns, and a success sets none of them.
The triggers raise the same error, with the same name.
"""

from alembic import op

revision = "0015"
down_revision = "0016"

#: The former constraints: the columns that a statement must set to break one, and the condition on which it is broken.
GUARDS = {
    "rota_runs_requests_wait": ("reason", "NEW.slot IS NULL AND NEW.state = 'skipped' AND NEW.reason = 'overlap'"),
    "rota_runs_limits": (
        "started_at",
        "NEW.state = 'running' AND NEW.limits IS NOT NULL AND NEW.limits_token IS DISTINCT FROM NEW.token",
    ),
    "rota_runs_starts_in_time": (
        "started_at",
        (
            "NEW.state = 'running' AND NEW.started_at >= NEW.expires_at AND NEW.attempt <= 1 AND NEW.error IS NULL "
            "AND NEW.retried_at IS NULL"
        ),
    ),
}
REFUSE = """
    CREATE FUNCTION rota_refuse_update() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE check_violation USING
            MESSAGE = format('new row for relation "%s" violates check constraint "%s"', TG_TABLE_NAME, TG_NAME),
            CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END $$
"""
LIMITS_ARE_KEPT = "state <> 'running' OR limits IS NULL OR limits_token IS NOT DISTINCT FROM token"
STARTS_IN_TIME = (
    "expires_at IS NULL OR state <> 'running' OR started_at < expires_at OR attempt > 1 OR error IS NOT NULL "
    "OR retried_at IS NOT NULL"
)
#: The constraint does not apply to requests that were skipped before this downgrade.
REQUESTS_WAIT = """
    DO $$ BEGIN
        EXECUTE format(
            'ALTER TABLE rota_runs ADD CONSTRAINT rota_runs_requests_wait '
            'CHECK (NOT (slot IS NULL AND state = ''skipped'' AND reason = ''overlap'' AND finished_at > %L))',
            clock_timestamp());
    END $$
"""


def upgrade() -> None:
    op.execute(REFUSE)
    for name, (column, condition) in GUARDS.items():
        op.execute(f"""
            CREATE TRIGGER {name} BEFORE UPDATE OF {column} ON rota_runs FOR EACH ROW
            WHEN ({condition}) EXECUTE FUNCTION rota_refuse_update()
        """)
        op.drop_constraint(name, "rota_runs")


def downgrade() -> None:
    for name in GUARDS:
        op.execute(f"DROP TRIGGER {name} ON rota_runs")
    op.execute("DROP FUNCTION rota_refuse_update()")
    op.execute(REQUESTS_WAIT)
    op.create_check_constraint("rota_runs_limits", "rota_runs", LIMITS_ARE_KEPT)
    op.create_check_constraint("rota_runs_starts_in_time", "rota_runs", STARTS_IN_TIME)
