"""Records the slots that periodiq reports as due, and sends the runs of slots that no other process has recorded."""

from collections.abc import Callable, Sequence

from sqlalchemy import Engine

from core import database
from core.jobs.job import Job
from core.ledger import runs, slots
from core.ledger.carrier import Carrier
from core.ledger.slots import SlotRow
from core.observability.events import SlotNotSent, emit
from core.plugins import loading
from core.scheduling.periodic import PeriodicSchedule, nothing


class Firing:
    """The schedules of one process's jobs, for periodiq."""

    def __init__(self, engine: Engine, carrier: Carrier, on_first_question: Callable[[], None] = nothing) -> None:
        """``on_first_question`` is called whenever periodiq begins to ask for a schedule."""
        self._engine = engine
        self._carrier = carrier
        self._on_first_question = on_first_question
        self._schedules: list[tuple[Job, PeriodicSchedule]] = []

    def add(self, job: Job) -> PeriodicSchedule:
        """Return the schedule of ``job``, for periodiq."""
        assert job.schedule is not None
        schedule = PeriodicSchedule(job.schedule, on_first_question=self._on_first_question)
        self._schedules.append((job, schedule))
        return schedule

    def fire(self) -> None:
        """Record the due slots of every job. Send the runs of the slots that no other process has recorded.

        periodiq checks all jobs before it calls this for the first job that is due, so further calls for the other due
        jobs find nothing to do. Errors are logged and not raised, since an error would end periodiq's process.
        """
        due = [(job, SlotRow(slot)) for job, schedule in self._schedules for slot in schedule.take()]
        if not due:
            return
        try:
            self._record(due)
        except Exception as error:  # noqa: BLE001 — the dispatcher inserts the slots that are missing
            emit(SlotNotSent(len(due), database.brief(error)))

    def _record(self, due: Sequence[tuple[Job, SlotRow]]) -> None:
        carries, scopes = self._carrier.carries, loading.current().scopes
        with database.autocommit(self._engine) as connection:
            for outgoing in slots.insert_many(connection, due, carried=carries, scopes=scopes):
                if carries:
                    self._carrier.send(outgoing)
            if not carries:
                runs.announce(connection)
