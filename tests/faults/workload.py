"""The jobs of the fault suite, as an installed plugin, and the tables in which the jobs and the ledger record what they
did.

Each job writes its effect in its own transaction, with the token of its lease, so that there is one effect for each
commit. A trigger on the ledger records each change of a run's state in the same transaction. So the checker reads what
was committed, and not what a process has reported.
"""

import os
import signal
import time
from contextlib import suppress

from sqlalchemy import text

from core import Job, Run, enqueue, every, hookimpl, job
from tests.faults import flow_jobs, planted, switches
from tests.faults.history import BY_A_CHILD, OF_A_CHILD, Spec
from tests.faults.traces import PATIENCE, QUEUE, SECOND, effect, query

TABLES = f"""
    {flow_jobs.TABLES}
    CREATE TABLE fault_effects (
        id bigserial PRIMARY KEY, run_id bigint NOT NULL, kind text NOT NULL, step int NOT NULL, token bigint NOT NULL,
        attempt int NOT NULL, began_at timestamptz NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        found text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id());
    CREATE TABLE fault_requests (run_id bigint PRIMARY KEY);
    CREATE TABLE fault_letters (id bigserial PRIMARY KEY, number int NOT NULL);
    CREATE TABLE fault_transitions (
        id bigserial PRIMARY KEY, run_id bigint NOT NULL, before text, after text NOT NULL, reason text,
        attempt int NOT NULL, failures int NOT NULL, crashes int NOT NULL, token bigint, process_id bigint, worker text,
        due_at timestamptz NOT NULL, error text, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id());
    CREATE FUNCTION fault_note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state OR OLD.attempt IS DISTINCT FROM NEW.attempt
                OR OLD.token IS DISTINCT FROM NEW.token OR OLD.reason IS DISTINCT FROM NEW.reason THEN
            INSERT INTO fault_transitions
                (run_id, before, after, reason, attempt, failures, crashes, token, process_id, worker, due_at, error)
            VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.state END, NEW.state, NEW.reason, NEW.attempt,
                NEW.failures, NEW.crashes, NEW.token,
                coalesce(NEW.process_id, CASE TG_OP WHEN 'UPDATE' THEN OLD.process_id END), NEW.worker, NEW.due_at,
                NEW.error);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER fault_note AFTER INSERT OR UPDATE ON rota_runs FOR EACH ROW WHEN (NEW.job <> 'backlog')
        EXECUTE FUNCTION fault_note();
    CREATE FUNCTION fault_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'this result cannot be stored' USING ERRCODE = 'untranslatable_character';
    END $$;
    CREATE TRIGGER fault_refuse BEFORE UPDATE ON rota_runs FOR EACH ROW
        WHEN (NEW.job = 'refused' AND NEW.state = 'succeeded') EXECUTE FUNCTION fault_refuse();
"""
#: Changes of a session that outlive the transaction. ``EFFECT`` finds each of them, except the last, which makes it
#: fail.
LEFT = [
    "SET search_path TO fault_left, public",
    "SET TIME ZONE 'Antarctica/Troll'",
    "SET statement_timeout TO 54321",
    "CREATE TEMPORARY TABLE fault_left (number int)",
    "LISTEN fault_left",
    "SELECT pg_advisory_lock_shared(4711, 1)",
    "SET default_transaction_read_only TO on",
]
NEXT_STEP = text("SELECT coalesce(max(step) + 1, 0) FROM fault_effects WHERE run_id = :run AND kind = 'step'")

FAST_QUEUE = "faults-fast"
#: The queue that no worker serves, to which a fault adds a backlog.
BACKLOG_QUEUE = "faults-backlog"
STEPS = 6
#: The longest time in which a forked child may end, in seconds.
CHILD_SECONDS = 5.0


@job(
    "second",
    queue=QUEUE,
    schedule=every(seconds=1),
    overlap="allow",
    misfire="all",
    retry_delay=SECOND,
    max_retries=PATIENCE,
)
def second(run: Run) -> None:
    """Has a slot every second. No slot may be missed."""
    effect(run)


@job("five", queue=QUEUE, schedule=every(seconds=5), retry_delay=SECOND, max_retries=PATIENCE)
def five(run: Run) -> None:
    """Has a slot every 5 s. Two runs never overlap."""
    effect(run)
    query(run, 0.3)


@job("keyed", queue=QUEUE, overlap="wait", retry_delay=SECOND, max_retries=PATIENCE)
def keyed(run: Run) -> None:
    """Never overlaps another run of its key. Spends half of its time outside of a transaction."""
    time.sleep(0.4)
    effect(run)
    query(run, 0.4)


@job("free", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def free(run: Run) -> None:
    """Is quick. Any number of runs may overlap."""
    effect(run)


@job("nap", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def nap(run: Run) -> None:
    """Works for a while without a transaction, so that only its lease decides whether it may commit."""
    time.sleep(2)
    effect(run)


@job("slow-query", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def slow_query(run: Run) -> None:
    """Spends its time in a statement."""
    effect(run)
    query(run, 2.5)


@job("parent", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def parent(run: Run) -> None:
    """Requests a run of another job, in its own transaction."""
    effect(run)
    run_id = enqueue(run.session, "child")
    run.session.execute(text("INSERT INTO fault_requests VALUES (:run)"), {"run": run_id})
    query(run, 0.1)


@job("child", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def child(run: Run) -> None:
    """Is requested by ``parent``."""
    effect(run)


@job("flaky", queue=QUEUE, overlap="allow", retry_delay=2 * SECOND, max_retries=PATIENCE)
def flaky(run: Run) -> None:
    """Fails twice, then succeeds."""
    effect(run)
    assert run.work.lease is not None
    if run.work.lease.failures < 2:
        raise RuntimeError("failed on purpose")


@job("hopeless", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=2)
def hopeless(run: Run) -> None:
    """Fails every time."""
    effect(run)
    raise RuntimeError("failed on purpose")


@job("sweep", queue=QUEUE, overlap="wait", retry_delay=SECOND, max_retries=PATIENCE)
def sweep(run: Run) -> None:
    """Commits batch after batch. A new attempt goes on after the last committed batch."""
    first = run.session.execute(NEXT_STEP, {"run": run.id}).scalar_one()
    for step in range(first, STEPS):
        effect(run, "step", step)
        query(run, 0.1)
        run.checkpoint({"step": step})
        time.sleep(0.3)
    effect(run)


@job("too-long", queue=QUEUE, overlap="allow", soft_limit=SECOND, max_retries=0)
def too_long(run: Run) -> None:
    """Passes its soft limit in a statement."""
    effect(run)
    query(run, 60)


@job("poison", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def poison(run: Run) -> None:
    """Kills its own process."""
    effect(run)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


@job("untidy", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def untidy(run: Run) -> None:
    """Changes its session in every way, and reverts nothing."""
    effect(run)
    for statement in LEFT:
        run.session.execute(text(statement))


@job("fork", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def fork(run: Run) -> None:
    """Forks a child that tries to write an effect, and that then leaves the job's function with an error."""
    effect(run)
    child = os.fork()
    if child == 0:
        with suppress(Exception):
            effect(run, BY_A_CHILD)
            run.session.commit()
        raise RuntimeError(OF_A_CHILD)
    wait_for_end(child)


def wait_for_end(child: int) -> None:
    """Wait until a forked child has ended. Kill the child if it does not end in time."""
    deadline = time.monotonic() + CHILD_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


@job("light", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def light(run: Run) -> None:
    """Writes nothing, so that its success is recorded together with other successes."""


@job("refused", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def refused(run: Run) -> None:
    """Writes nothing, and PostgreSQL refuses its success."""


@job("backlog", queue=BACKLOG_QUEUE, overlap="allow")
def backlog(run: Run) -> None:
    """Is requested in great numbers, and is never worked on."""


@job("letter", queue=FAST_QUEUE, ledger=False, max_retries=PATIENCE, retry_delay=SECOND)
def letter(run: Run, number: int) -> None:
    """Is on the fast lane."""
    run.session.execute(text("INSERT INTO fault_letters (number) VALUES (:number)"), {"number": number})


JOBS = [
    second, five, keyed, free, nap, slow_query, parent, child, flaky, hopeless, sweep, too_long, poison,
    untidy, fork, light, refused, backlog, letter, *flow_jobs.JOBS,
]  # fmt: skip
PERIODS = {"second": 1, "five": 5, **flow_jobs.PERIODS}
#: The jobs that never succeed. ``REQUESTS`` has the weight of each job that the client requests.
FAILS = {"hopeless", "too-long", "poison", "refused"}
REQUESTS = {
    "keyed": 8, "free": 6, "nap": 4, "slow-query": 3, "parent": 4, "flaky": 3, "hopeless": 1, "sweep": 3, "too-long": 1,
    "untidy": 3, "fork": 2, "light": 4, "refused": 1, **flow_jobs.REQUESTS,
}  # fmt: skip


def spec(job: Job) -> Spec:
    """Return what the checker must know about a job."""
    return Spec(
        job.name,
        every_seconds=PERIODS.get(job.name),
        exclusive=job.exclusive,
        max_retries=job.max_retries,
        misfire=job.misfire,
        may_succeed=job.name not in FAILS,
        may_die=job.name in {"hopeless", "too-long"},
        is_poison=job.name == "poison",
        has_effect=job.name != "light",
        is_refused=job.name == "refused",
        has_delay=bool(job.retry_delay),
        at_once=flow_jobs.AT_ONCE if job is flow_jobs.limited else None,
        pace=(flow_jobs.PACE[0], flow_jobs.PACE[1].total_seconds()) if job is flow_jobs.paced else None,
        keeps_newest=job.schedule is not None and job.overlap == "wait",
    )


SPECS = {job.name: spec(job) for job in JOBS if job.ledger and job is not backlog}


class Workload:
    """The plugin. A process that loads it also installs its switches and its plants."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        switches.install()
        planted.install()
        return JOBS
