"""I4: runs and messages of a transaction exist, in the ledger and in Redis, if and only if the transaction commits."""

import json
from contextlib import closing, contextmanager, suppress
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, enqueue_many, job, publish, send, send_many
from core.dispatcher import leadership
from core.errors import BadArguments, RotaError, UnknownJob
from core.ledger import outbox
from core.ledger.runs import DUE_CHANNEL
from tests.support.effects import leave
from tests.support.racing import race


@job("send-statement", queue="letters")
def send_statement(run, customer: int = 0):
    leave(run.session, f"statement {customer}")


@job("fast", ledger=False)
def fast(run, path: str = ""):
    pass


@job("parent")
def parent(run, customers: list[int], fail: bool = False):
    leave(run.session, "parent")
    for customer in customers:
        run.enqueue("send-statement", key=str(customer), args={"customer": customer})
    if fail:
        raise RuntimeError("failed on purpose")


@pytest.fixture
def session(database, use_jobs):
    use_jobs(send_statement, fast, parent)
    with Session(database) as session:
        yield session


@contextmanager
def listening(engine):
    """Yield a connection that gets the notifications that a dispatcher gets."""
    with databases.dedicated(engine) as connection:
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
        yield connection


class TestRuns:
    """A run exists after the commit, and its message is sent right after the commit."""

    def test_a_committed_run_is_in_the_ledger_and_its_message_sent(self, session, ledger, carrier):
        with session.begin():
            run_id = enqueue(session, "send-statement", key="a", args={"customer": 7})
            assert carrier.runs == []

        row = ledger.run(run_id)
        assert (row.job, row.key, row.queue, row.state, row.args) == (
            "send-statement", "a", "letters", "queued", {"customer": 7}
        )  # fmt: skip
        assert row.sent_at is not None
        assert [run.run_id for run in carrier.runs] == [run_id]

    def test_the_message_of_a_committed_run_lies_on_redis(self, serve, database, ledger):
        service = serve(send_statement)

        with Session(database) as session, session.begin():
            run_id = enqueue(session, "send-statement")
            assert service.waiting("letters") == 0

        assert service.carrier.oldest_runs("letters") == (True, [run_id])

    def test_a_rolled_back_run_never_was(self, session, ledger, carrier):
        enqueue(session, "send-statement")
        session.rollback()
        session.execute(text("SELECT 1"))
        session.commit()

        assert ledger.runs("send-statement") == []
        assert carrier.runs == []

    def test_a_run_of_a_closed_session_never_was(self, session, ledger, carrier):
        enqueue(session, "send-statement")
        publish(session, "live", {"never": True})
        session.close()
        session.execute(text("SELECT 1"))
        session.commit()

        assert ledger.runs("send-statement") == []
        assert (carrier.runs, carrier.publications) == ([], [])

    def test_a_session_keeps_nothing_of_transactions_that_have_ended(self, session, carrier):
        for end in (session.commit, session.rollback, session.close):
            enqueue(session, "send-statement")
            end()

            assert not session.info[outbox.INFO_KEY]

    def test_a_failed_commit_sends_nothing(self, session, ledger, carrier):
        enqueue(session, "send-statement")
        ledger.value("SELECT pg_terminate_backend(:pid, 5000)", pid=session.scalar(text("SELECT pg_backend_pid()")))
        with suppress(Exception):
            session.commit()
        session.rollback()
        session.execute(text("SELECT 1"))
        session.commit()

        assert ledger.runs("send-statement") == []
        assert carrier.runs == []

    def test_each_of_several_transactions_sends_its_own(self, session, ledger, carrier):
        sent = []
        for _ in range(3):
            sent.append(enqueue(session, "send-statement"))
            session.commit()
            assert [run.run_id for run in carrier.runs] == sent

    def test_runs_asked_for_at_once_by_many_sessions_are_all_there(self, database, session, ledger, carrier):
        def ask():
            with Session(database) as own, own.begin():
                return enqueue(own, "send-statement")

        run_ids = race(*[ask] * 20)

        assert sorted(run_ids) == sorted(run.run_id for run in carrier.runs)
        assert len(ledger.runs("send-statement")) == len(set(run_ids)) == 20


class TestMany:
    """Many runs at once: the same results as one by one, with fewer statements."""

    def test_they_are_inserted_and_sent_in_their_order(self, session, ledger, carrier):
        args = [{"customer": number} for number in range(2500)]
        with session.begin():
            run_ids = enqueue_many(session, "send-statement", args, keys=map(str, range(2500)))
            assert carrier.runs == []

        rows = ledger.runs("send-statement")
        assert [row.id for row in rows] == run_ids == [run.run_id for run in carrier.runs]
        assert [(row.args["customer"], row.key) for row in rows] == [(number, str(number)) for number in range(2500)]

    def test_without_keys_all_have_the_empty_one_and_a_rollback_takes_all(self, session, ledger, carrier):
        with session.begin():
            enqueue_many(session, "send-statement", [{}, {}])
        enqueue_many(session, "send-statement", [{}] * 10)
        session.rollback()

        assert [row.key for row in ledger.runs("send-statement")] == ["", ""]
        assert len(carrier.runs) == 2

    def test_none_are_none(self, session, ledger, carrier):
        with session.begin():
            assert enqueue_many(session, "send-statement", []) == []

        assert carrier.runs == []

    def test_delayed_ones_are_left_to_the_dispatcher(self, session, ledger, carrier):
        with session.begin():
            enqueue_many(session, "send-statement", [{}, {}], delay=timedelta(minutes=1))

        assert carrier.runs == []
        assert all(row.sent_at is None for row in ledger.runs("send-statement"))

    def test_messages_of_the_fast_lane_are_sent_together_after_the_commit(self, serve, database):
        service = serve(fast)
        with Session(database) as session, session.begin():
            send_many(session, "fast", [{"path": str(number)} for number in range(2500)])
            assert service.waiting() == 0

        assert service.waiting() == 2500


class TestSavepoints:
    """The end of a savepoint sends nothing. Only the end of its transaction does."""

    def test_nothing_is_sent_at_the_end_of_a_savepoint_but_with_the_commit(self, session, ledger, carrier):
        with session.begin():
            with session.begin_nested():
                run_id = enqueue(session, "send-statement")
                publish(session, "live", {"run": run_id})
            assert (carrier.runs, carrier.publications) == ([], [])

        assert [run.run_id for run in carrier.runs] == [run_id]
        assert carrier.publications == [("live", {"run": run_id})]

    def test_a_savepoint_rolled_back_takes_its_own_runs_with_it_and_no_others(self, session, ledger, carrier):
        with session.begin():
            before = enqueue(session, "send-statement", key="before")
            publish(session, "live", {"before": True})
            savepoint = session.begin_nested()
            enqueue(session, "send-statement", key="undone")
            publish(session, "live", {"undone": True})
            savepoint.rollback()
            after = enqueue(session, "send-statement", key="after")

        assert [row.key for row in ledger.runs("send-statement")] == ["before", "after"]
        assert [run.run_id for run in carrier.runs] == [before, after]
        assert carrier.publications == [("live", {"before": True})]

    def test_a_savepoint_within_one_that_is_rolled_back_goes_with_it(self, session, ledger, carrier):
        with session.begin():
            outer = session.begin_nested()
            with session.begin_nested():
                enqueue(session, "send-statement", key="undone")
            outer.rollback()
            kept = enqueue(session, "send-statement", key="kept")

        assert [row.key for row in ledger.runs("send-statement")] == ["kept"]
        assert [run.run_id for run in carrier.runs] == [kept]

    def test_a_commit_from_within_savepoints_sends_everything_once(self, session, ledger, carrier):
        run_ids = [enqueue(session, "send-statement")]
        session.begin_nested()
        run_ids.append(enqueue(session, "send-statement"))
        session.begin_nested()
        run_ids.append(enqueue(session, "send-statement"))
        session.commit()

        assert [run.run_id for run in carrier.runs] == run_ids


class TestWithoutRedis:
    """If a process has no carrier, or its Redis is away, the dispatcher sends its runs."""

    def test_without_a_carrier_a_dispatcher_hears_of_the_run_when_it_is_committed(self, session, ledger, database):
        with listening(database) as dispatcher:
            with session.begin():
                run_id = enqueue(session, "send-statement")
                assert not leadership.wait_for_runs(dispatcher, 0)

            assert leadership.wait_for_runs(dispatcher, 5)
        assert ledger.run(run_id).sent_at is None

    def test_without_a_carrier_nothing_is_heard_of_a_run_that_is_rolled_back(self, session, database):
        with listening(database) as dispatcher:
            enqueue(session, "send-statement")
            session.rollback()

            assert not leadership.wait_for_runs(dispatcher, 0)

    def test_a_commit_stands_while_redis_is_away(self, session, ledger, carrier, caplog):
        carrier.is_away = True

        with session.begin():
            run_id = enqueue(session, "send-statement")
            publish(session, "live", {})

        assert ledger.run(run_id).state == "queued"
        assert "outbox.not_delivered" in caplog.text

    def test_a_publication_without_a_carrier_goes_nowhere(self, session):
        with session.begin():
            publish(session, "live", {})


class TestFastLane:
    """A message of the fast lane is sent after the commit, and needs Redis."""

    def test_a_message_is_sent_after_the_commit_and_not_before(self, session, carrier):
        with session.begin():
            send(session, "fast", args={"path": "a.png"})
            assert carrier.messages == []

        assert [(message.job, message.args) for message in carrier.messages] == [("fast", {"path": "a.png"})]

    def test_a_message_of_a_transaction_that_was_rolled_back_is_never_sent(self, session, carrier):
        send(session, "fast")
        session.rollback()

        assert carrier.messages == []

    def test_a_process_without_redis_is_told_so(self, session):
        with pytest.raises(RotaError, match="this process has no Redis"):
            send(session, "fast")

    def test_wrong_arguments_are_refused_at_once(self, session, carrier):
        with pytest.raises(BadArguments, match="pth is not an argument; did you mean 'path'"):
            send(session, "fast", args={"pth": "a.png"})

    def test_a_job_of_the_ledger_is_not_sent(self, session, carrier):
        with pytest.raises(BadArguments, match="request a run with enqueue"):
            send(session, "send-statement")


class TestDelay:
    """Runs that are due later."""

    def test_a_delayed_run_is_due_after_its_delay_and_the_dispatchers_to_send(self, session, ledger, carrier):
        before = ledger.value("SELECT clock_timestamp()")
        with session.begin():
            run_id = enqueue(session, "send-statement", delay=timedelta(minutes=1))
        after = ledger.value("SELECT clock_timestamp()")

        row = ledger.run(run_id)
        assert before <= row.due_at - timedelta(minutes=1) <= after
        assert row.sent_at is None
        assert carrier.runs == []

    @pytest.mark.parametrize("delay", [timedelta(seconds=-1), timedelta(days=4000), timedelta.max])
    def test_a_delay_out_of_bounds_is_refused(self, session, delay):
        with pytest.raises(BadArguments, match="delay="):
            enqueue(session, "send-statement", delay=delay)


class TestRefused:
    """Invalid requests raise an error at once, and the caller's transaction can continue."""

    def test_an_unknown_job_is_refused_with_the_nearest_name(self, session):
        with pytest.raises(UnknownJob, match=r"unknown job 'send-statemnet'; did you mean 'send-statement'\?"):
            enqueue(session, "send-statemnet")

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            ({"customer": "seven"}, "customer: input should be a valid integer"),
            ({"custmer": 7}, "custmer is not an argument; did you mean 'customer'"),
            ({"customer": 7.5}, "customer"),
            ({"customer": object()}, "JSON"),
            ({"customer": float("nan")}, "JSON"),
            ({"customer": "\ud800"}, "JSON"),
        ],
    )
    def test_wrong_arguments_are_refused_and_the_transaction_goes_on(self, session, ledger, args, named):
        with session.begin():
            leave(session, "kept")
            with pytest.raises(BadArguments, match=named):
                enqueue(session, "send-statement", args=args)

        assert ledger.effects() == ["kept"]

    @pytest.mark.parametrize("key", [7, None, b"bytes", "nul\0", "\ud800", "\N{GRINNING FACE}x7Fq9" * 2000])
    def test_a_bad_key_is_refused_and_the_transaction_goes_on(self, session, ledger, key):
        with session.begin():
            leave(session, "kept")
            with pytest.raises(BadArguments, match="key"):
                enqueue(session, "send-statement", key=key)

        assert ledger.effects() == ["kept"]

    @pytest.mark.parametrize("key", ["", "a", "O'Brien; --", "\N{GRINNING FACE}", "x" * 100])
    def test_any_other_text_is_a_key(self, session, ledger, key):
        with session.begin():
            run_id = enqueue(session, "send-statement", key=key)

        assert ledger.run(run_id).key == key

    def test_a_job_of_the_fast_lane_is_refused(self, session):
        with pytest.raises(BadArguments, match="fast lane"):
            enqueue(session, "fast")


class TestPublications:
    """Live messages, which only present subscribers receive."""

    def test_a_publication_reaches_redis_after_the_commit_and_not_before(self, serve, database):
        service = serve(send_statement)
        with closing(service.redis.pubsub(ignore_subscribe_messages=True)) as listener:
            listener.subscribe("live")
            listener.get_message(timeout=5)
            with Session(database) as session, session.begin():
                publish(session, "live", {"chat": 5})
                session.execute(text("SELECT 1"))
                assert listener.get_message(timeout=0) is None

            heard = listener.get_message(timeout=5)

        assert json.loads(heard["data"]) == {"chat": 5}

    def test_a_rolled_back_publication_is_not_made(self, session, carrier):
        publish(session, "live", {})
        session.execute(text("SELECT 1"))
        session.rollback()
        session.commit()

        assert carrier.publications == []

    def test_a_job_that_only_publishes_is_heard(self, run_job, carrier):
        row = run_job(job("work")(lambda run: publish(run.session, "live", {"run": run.id})))

        assert row.state == "succeeded"
        assert carrier.publications == [("live", {"run": row.id})]


class TestInJobs:
    """In a job, the transaction of the job sends the messages."""

    def test_a_jobs_runs_are_there_with_its_success(self, run_job, session, ledger, carrier):
        row = run_job(parent, args={"customers": [1, 2, 3]})

        assert row.state == "succeeded"
        assert [child.key for child in ledger.runs("send-statement")] == ["1", "2", "3"]
        assert len(carrier.runs) == 3

    def test_a_failed_jobs_runs_never_were(self, run_job, session, ledger, carrier):
        run_job(parent, args={"customers": [1, 2], "fail": True})

        assert ledger.runs("send-statement") == []
        assert carrier.runs == []

    def test_a_job_that_lost_its_lease_asks_for_nothing(self, run_job, session, ledger, carrier):
        def function(run):
            run.enqueue("send-statement")
            ledger.do("UPDATE rota_runs SET token = nextval('rota_tokens') WHERE id = :id", id=run.id)

        run_job(job("parent")(function))

        assert ledger.runs("send-statement") == []
        assert carrier.runs == []

    def test_a_checkpoint_sends_the_runs_of_its_batch(self, run_job, session, ledger, carrier):
        sent = []

        def function(run):
            first = run.enqueue("send-statement")
            run.checkpoint()
            sent.append(([run.run_id for run in carrier.runs], [first]))
            run.enqueue("send-statement")
            raise RuntimeError("in the second batch")

        run_job(job("parent")(function))

        assert sent[0][0] == sent[0][1]
        assert len(ledger.runs("send-statement")) == len(carrier.runs) == 1
