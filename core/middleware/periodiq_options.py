"""Declares the options under which periodiq finds a schedule and passes its time.

periodiq's own middleware does this too, but drops every message that is more than 30 s late, retries included.
"""

from dramatiq.middleware import Middleware


class PeriodiqOptions(Middleware):
    """Knows ``periodic`` and ``scheduled_at``."""

    @property
    def actor_options(self) -> set[str]:
        """The options that an actor may have."""
        return {"periodic", "scheduled_at"}
