"""A dispatcher's accounting for schedules made at run time, at times that a test sets."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from core.dispatcher.key_slots import KeyAccountant
from core.ledger import history
from core.ledger.releases import Fleet

SECOND = timedelta(seconds=1)


class Leader:
    """A dispatcher's accounting for jobs, at times that the test sets."""

    def __init__(self, connection, monkeypatch, use_jobs, *jobs):
        self.connection, self.monkeypatch = connection, monkeypatch
        self.registry = use_jobs(*jobs)
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.accountant = KeyAccountant(self.registry)
        self.fleet = Fleet()

    def pass_at(self, now):
        self.now = now
        self.monkeypatch.setattr(history, "NOW", text(f"SELECT timestamptz '{now.isoformat()}'"))
        return self.accountant.account(self.connection, self.fleet)

    def passes(self, span, step=SECOND):
        """Make passes for the time ``span``, and return how many runs they have inserted."""
        end, inserted = self.now + span, 0
        while self.now < end:
            inserted += self.pass_at(min(self.now + step, end))
        return inserted

    def is_replaced(self):
        """Let another process lead from now on."""
        self.accountant = KeyAccountant(self.registry)
