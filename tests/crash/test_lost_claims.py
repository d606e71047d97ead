"""I3: a claim is not flushed to disk by itself. If a crash of PostgreSQL loses a claim, its worker cannot commit."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from core import database
from core.embedded import EmbeddedPostgres
from core.errors import LeaseLost
from core.ledger import claims, leases, processes, runs
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.processes import Identity
from core.plugins import loading
from core.schema import upgrade

pytestmark = pytest.mark.crash


NO_DELAY = timedelta(0)
#: With these settings, the write-ahead log is flushed only if a commit requires it, with few exceptions.
LAZY = {"wal_writer_delay": "10s", "autovacuum": "off", "bgwriter_lru_maxpages": "0"}
#: Sometimes the log is flushed anyway, and the crash loses nothing. Then the test crashes PostgreSQL again.
MOST_CRASHES = 10


@pytest.fixture
def server(servers_folder: Path, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a PostgreSQL that flushes its write-ahead log only when a commit requires it, so that a crash loses the
    rest.
    """
    made = EmbeddedPostgres(servers_folder / tmp_path.name, settings=LAZY)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def engine(server: EmbeddedPostgres) -> Iterator[Engine]:
    made = database.connect(server.url)
    list(upgrade.upgrade(made, loading.current()))
    yield made
    database.dispose(made)


def claim_again(engine: Engine, run_id: int, stack: ExitStack) -> Lease:
    """Claim the run for a process that has just registered."""
    registration = stack.enter_context(database.dedicated(engine))
    process_id = processes.register(registration, Identity("worker", "test:1", "test"), timedelta(hours=1))
    registration.exec_driver_sql("CHECKPOINT")
    with database.autocommit(engine) as connection:
        verdict, lease = claims.claim(connection, run_id, job="work", process_id=process_id, worker="test:1")
    assert lease is not None, verdict
    return lease


def lose_claim(server: EmbeddedPostgres, engine: Engine, stack: ExitStack) -> Lease:
    """Return a lease whose claim was lost in a crash of PostgreSQL, together with the value that it drew from the
    sequence.
    """
    for _ in range(MOST_CRASHES):
        with database.autocommit(engine) as connection:
            run_id = runs.request(
                connection, "work", key="", queue="default", args="{}", exclusive=False, delay=NO_DELAY, carried=True
            )  # fmt: skip
        lost = claim_again(engine, run_id, stack)
        server.kill()
        server.start()
        database.dispose(engine)
        with database.autocommit(engine) as connection:
            state = connection.execute(text("SELECT state FROM rota_runs WHERE id = :id"), {"id": run_id}).scalar_one()
        if state == State.QUEUED:
            return lost
    raise AssertionError(f"none of {MOST_CRASHES} crashes has lost a claim")


def test_a_token_that_postgresql_draws_again_after_a_crash_is_good_for_its_second_holder_alone(server, engine):
    with ExitStack() as stack:
        lost = lose_claim(server, engine, stack)
        held = claim_again(engine, lost.run_id, stack)
        assert held.token == lost.token, "the crash has lost what the claim drew from the sequence, too"

        with database.autocommit(engine) as connection:
            with pytest.raises(LeaseLost):
                leases.hold(connection, lost)
            with pytest.raises(LeaseLost):
                leases.hold(connection, lost, "{}")
            assert not runs.fail(connection, lost, runs.Failure(State.RETRYING, "error", ""))
            assert runs.succeed(connection, lost, None) is None
            assert runs.succeed(connection, held, None) is not None
