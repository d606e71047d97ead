"""Who dispatches: whoever holds one PostgreSQL advisory lock, for as long as that connection lives.

Two that both believe they lead would do no harm: every step is a conditional statement that only one can win.
"""

import select

from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, text

from core.ledger.processes import LEADER_LOCK, LOCK_SPACE
from core.ledger.runs import DUE_CHANNEL

TRY_LOCK = text("SELECT pg_try_advisory_lock(:space, :lock)")


def is_won(connection: Connection) -> bool:
    """Ask for leadership, and once it is won listen for runs that are due at once."""
    won = connection.execute(TRY_LOCK, {"space": LOCK_SPACE, "lock": LEADER_LOCK}).scalar_one()
    if won:
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
    return bool(won)


def wait_for_runs(connection: Connection, timeout_seconds: float) -> bool:
    """Wait until runs were requested, at most for the time-out; return whether they were."""
    driver: DriverConnection = connection.connection.dbapi_connection  # type: ignore[assignment]
    if not driver.notifies:
        select.select([driver], [], [], max(timeout_seconds, 0))
        driver.poll()
    heard = bool(driver.notifies)
    driver.notifies.clear()
    return heard
