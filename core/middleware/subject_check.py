"""Looks up the subject of a run before its first attempt: the row that the run is about."""

from typing import Any

from sqlalchemy import Engine

from core import database
from core.errors import NoSubject
from core.jobs.subject import Subject
from core.ledger import subjects
from core.ledger.models import State
from core.ledger.subjects import SubjectTable
from core.middleware.execution import LOST, RELEASED, Execution, Layer, Proceed
from core.observability.events import RunHasNoSubject, RunSubjectUnknown, emit
from core.worker.outcomes import Recorder, in_words


class SubjectCheck(Layer):
    """Ends a run as orphaned if its subject does not exist. If the look-up fails, releases the run."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        #: The tables of subjects that have been found.
        self._tables: dict[str, SubjectTable] = {}

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers if the job has no subject, the run has no subject, or the subject's row exists."""
        subject = execution.job.subject
        if subject is None:
            return proceed(execution)
        return self._judge(execution, subject) or proceed(execution)

    def _judge(self, execution: Execution, subject: Subject) -> str | None:
        """Return the outcome of a run that must not be attempted, or None if the run may be attempted."""
        lease = execution.lease
        assert lease is not None, "only a run of the ledger has a subject"
        if lease.attempt > 1 or execution.misfit is not None or (named := subject.of(lease.args)) is None:
            return None
        try:
            if self._exists(subject, str(lease.args[subject.parameter])):
                return None
        except (*database.DATABASE_AWAY, NoSubject) as error:
            self._tables.pop(subject.table, None)
            if not database.refuses_value(error):
                return self._hand_back(execution, named, error)
        return self._orphan(execution, named)

    def _exists(self, subject: Subject, value: str) -> bool:
        with database.autocommit(self._engine) as connection:
            if subject.table not in self._tables:
                self._tables |= subjects.tables(connection, [subject.table])
            if subject.table not in self._tables:
                raise NoSubject(f"table {subject.table!r} does not exist, or is not in the search_path")
            return subjects.exists(connection, self._tables[subject.table], value)

    def _orphan(self, execution: Execution, named: str) -> str:
        lease = execution.lease
        assert lease is not None
        said = f"{named} does not exist"
        if not self._recorder.record(lease, lambda connection: subjects.orphan(connection, lease, said)):
            return LOST
        emit(RunHasNoSubject(lease.job, lease.run_id, execution.job.subject.table if execution.job.subject else ""))
        return State.ORPHANED

    def _hand_back(self, execution: Execution, named: str, error: Exception) -> str:
        lease = execution.lease
        assert lease is not None
        said = f"{named} could not be looked up: {in_words(error)}"
        if not self._recorder.record(lease, lambda connection: subjects.hand_back(connection, lease, said)):
            return LOST
        emit(RunSubjectUnknown(lease.job, lease.run_id, in_words(error).partition("\n")[0]))
        return RELEASED
