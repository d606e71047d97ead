"""Declares the options of actors in which periodiq finds the schedule and stores the time of a slot.

periodiq's own middleware does this too, but also drops every message that is more than 30 s late, including retries.
"""

from dramatiq.middleware import Middleware


class PeriodiqOptions(Middleware):
    """Declares the options ``periodic`` and ``scheduled_at``."""

    @property
    def actor_options(self) -> set[str]:
        """The options that an actor may have."""
        return {"periodic", "scheduled_at"}
