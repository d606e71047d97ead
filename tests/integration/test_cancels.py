"""Cancels in the ledger: who ends a cancelled run, and that no commit of its attempt is possible."""

from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core import database as databases
from core.errors import LeaseLost
from core.ledger import attempts, cancels, claims, leases, processes, runs, unconnected
from core.ledger.models import State
from core.ledger.runs import Failure
from core.ledger.sessions import wait_for_notification


@pytest.fixture
def connection(database):
    """A connection in autocommit."""
    with databases.dedicated(database) as connection:
        yield connection


def cancel(connection, *run_ids, by="ann", reason="wrong list"):
    return [
        (each.run_id, each.state, each.is_new) for each in cancels.cancel(connection, run_ids, by=by, reason=reason)
    ]


def outcome(ledger, run_id):
    row = ledger.run(run_id)
    return row.state, row.reason, row.error, row.former_state


class TestWaiting:
    """A waiting run ends at once."""

    @pytest.mark.parametrize(
        "waiting",
        [{}, {"state": "retrying", "reason": "error"}, {"sent_at": "infinity", "reason": "limit"}],
        ids=["queued", "retrying", "parked"],
    )
    def test_it_is_dead_and_what_it_was_is_kept(self, connection, ledger, waiting):
        run_id = ledger.request(**waiting)

        assert cancel(connection, run_id) == [(run_id, waiting.get("state", "queued"), True)]

        row = ledger.run(run_id)
        assert (row.state, row.reason, row.error) == ("dead", "cancelled", "by ann: wrong list")
        assert (row.former_state, row.former_reason) == (waiting.get("state", "queued"), waiting.get("reason"))
        assert row.finished_at is not None
        assert row.sent_at is None
        assert cancels.marks(connection, [run_id]) == {}

    def test_without_a_reason_the_name_stands_alone(self, connection, ledger):
        run_id = ledger.request()
        cancel(connection, run_id, reason=None)

        assert ledger.run(run_id).error == "by ann"

    @pytest.mark.parametrize("state", ["succeeded", "dead", "skipped", "missed", "orphaned"])
    def test_a_run_that_is_over_stays_as_it_is(self, connection, ledger, state):
        run_id = ledger.request(state=state, finished_at="2026-01-01 00:00+00")

        assert cancel(connection, run_id) == []
        assert ledger.run(run_id).state == state


class TestRunning:
    """A running run keeps its state, its process and its key, and loses its token."""

    @pytest.fixture
    def lease(self, database, ledger, process, connection):
        """Return the lease of an attempt whose run was cancelled."""
        lease = process.lease(database, ledger.request(key="a"))
        assert cancel(connection, lease.run_id) == [(lease.run_id, "running", True)]
        return lease

    def test_it_still_holds_its_key(self, database, ledger, process, lease):
        row = ledger.run(lease.run_id)
        assert (row.state, row.process_id) == ("running", process.id)
        assert row.token > lease.token
        verdict, _ = process.claim(database, ledger.request(key="a", slot="2026-01-01 00:00+00"))
        assert verdict == "skipped"

    @pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
    def test_a_commit_of_its_attempt_is_refused(self, database, ledger, process, connection, level):
        """This also holds in a transaction whose snapshot is older than the cancel."""
        lease = process.lease(database, ledger.request())
        with Session(database.execution_options(isolation_level=level)) as session:
            session.connection().exec_driver_sql("SELECT 1 FROM rota_runs")
            cancel(connection, lease.run_id)
            with pytest.raises((LeaseLost, DBAPIError)):
                leases.hold(session, lease)

    def test_nothing_of_its_attempt_is_recorded(self, connection, ledger, lease):
        assert not runs.succeed(connection, lease, None)
        assert runs.succeed_many(connection, lease.process_id, [(lease, None)]) == {}
        assert not runs.fail(connection, lease, Failure(State.RETRYING, "error", "no"))
        assert unconnected.release(connection, lease, "no") is None
        claims.unclaim_many(connection, [lease])
        assert not claims.refuse(connection, lease, "form")

        assert ledger.run(lease.run_id).state == "running"

    def test_its_process_ends_it(self, connection, ledger, lease):
        assert cancels.of_process(connection, lease.process_id) == {lease.token: lease.run_id}
        assert cancels.end(connection, lease) == "by ann: wrong list"

        row = ledger.run(lease.run_id)
        assert (row.state, row.reason, row.former_state) == ("dead", "cancelled", "running")
        assert (row.process_id, row.attempt) == (None, 1)
        assert row.finished_at is not None
        assert cancels.of_process(connection, lease.process_id) == {}
        assert cancels.end(connection, lease) is None
        (attempt,) = attempts.of_run(connection, lease.run_id)
        assert (attempt.attempt, attempt.outcome, attempt.error) == (1, "cancelled", "by ann: wrong list")

    def test_a_run_that_was_not_cancelled_is_not_ended(self, database, connection, ledger, process):
        lease = process.lease(database, ledger.request())

        assert cancels.end(connection, lease) is None
        assert ledger.run(lease.run_id).state == "running"

    def test_another_cancel_changes_nothing(self, connection, ledger, lease):
        token = ledger.run(lease.run_id).token

        assert cancel(connection, lease.run_id, by="bob") == [(lease.run_id, "running", False)]
        assert ledger.run(lease.run_id).token == token
        assert cancels.end(connection, lease) == "by ann: wrong list"

    def test_its_process_is_notified(self, connection, database, ledger, process):
        lease = process.lease(database, ledger.request())
        with databases.dedicated(database) as listening:
            cancels.listen(listening, process.id)
            cancel(connection, lease.run_id)
            assert wait_for_notification(listening, 10)


class TestHandedBack:
    """A cancelled run ends in every way in which it can leave its process, and never starts again."""

    CANCELLED = ("dead", "cancelled", "by ann: wrong list", "running")

    @pytest.fixture
    def lease(self, database, ledger, process, connection):
        """Return the lease of an attempt whose run was cancelled."""
        lease = process.lease(database, ledger.request())
        cancel(connection, lease.run_id)
        return lease

    def test_a_release_ends_it(self, connection, ledger, lease):
        (handed_back,) = runs.release(connection, lease.process_id, "its worker was stopped")

        assert (handed_back.run_id, handed_back.state, handed_back.reason) == (lease.run_id, "dead", "cancelled")
        assert outcome(ledger, lease.run_id) == self.CANCELLED
        assert [attempt.outcome for attempt in attempts.of_run(connection, lease.run_id)] == ["cancelled"]
        assert cancels.marks(connection, [lease.run_id]) == {}

    def test_recovery_ends_it_and_counts_no_crash(self, connection, ledger, process, lease):
        processes.resign(connection, process.id)

        (recovered,) = processes.recover(connection, 1)

        assert (recovered.state, recovered.reason) == ("dead", "cancelled")
        assert outcome(ledger, lease.run_id) == self.CANCELLED
        assert ledger.run(lease.run_id).crashes == 0

    def test_it_is_not_taken_for_forgotten_while_its_process_has_it_in_hand(self, connection, ledger, lease):
        known = [lease.token]

        assert runs.release_forgotten(connection, lease.process_id, known, timedelta(0), "lost sight") == []
        assert ledger.run(lease.run_id).state == "running"

    def test_a_forgotten_one_ends(self, connection, ledger, lease):
        (forgotten,) = runs.release_forgotten(connection, lease.process_id, [], timedelta(0), "lost sight")

        assert (forgotten.state, forgotten.reason) == ("dead", "cancelled")
        assert outcome(ledger, lease.run_id) == self.CANCELLED

    def test_a_worker_of_the_release_before_cannot_start_it_again(self, connection, database, ledger, process, lease):
        """That worker does not know ``rota_cancels``, releases the run as forgotten, and so makes it due again."""
        ledger.do(
            "UPDATE rota_runs SET state = 'retrying', reason = 'its worker had lost sight of it', process_id = NULL, "
            "sent_at = NULL, due_at = clock_timestamp() WHERE id = :id AND state = 'running' AND token <> :token",
            id=lease.run_id,
            token=lease.token,
        )

        assert outcome(ledger, lease.run_id) == self.CANCELLED
        assert process.claim(database, lease.run_id)[0] == "none"

    def test_a_run_that_was_not_cancelled_is_released_as_ever(self, connection, database, ledger, process):
        run_id = process.lease(database, ledger.request()).run_id

        (handed_back,) = runs.release(connection, process.id, "its worker was stopped")

        assert (handed_back.state, handed_back.reason) == ("retrying", "its worker was stopped")
        assert outcome(ledger, run_id) == ("retrying", "its worker was stopped", None, None)
