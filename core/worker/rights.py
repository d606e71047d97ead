"""Reports the missing rights of a process's role: first all of them together, and later only rights that are new."""

from sqlalchemy import Engine

from core import database
from core.database import DATABASE_AWAY
from core.plugins import loading
from core.schema import grants


class MissingRights:
    """Remembers which missing rights were reported."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told: set[tuple[str, str]] = set()

    def remedy(self) -> str:
        """Return the statements that grant all missing rights on the ledger, or nothing if all were reported before."""
        try:
            with database.autocommit(self._engine) as connection:
                found = [lack for lack in grants.lacking(connection, loading.current()) if lack.owner == "core"]
        except DATABASE_AWAY:
            return ""
        missing = {right for lack in found for right in lack.each}
        is_news = not missing <= self._told
        self._told |= missing
        return "; ".join(lack.remedy for lack in found) if is_news else ""

    def reset(self) -> None:
        """Remember that the role has all rights, so that any later loss is reported."""
        self._told.clear()
