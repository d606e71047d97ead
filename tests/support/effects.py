"""The work of the integration tests' jobs: words in a table, there once for each commit."""

from sqlalchemy import text
from sqlalchemy.orm import Session

TABLE = "CREATE TABLE test_effects (word text PRIMARY KEY)"


def leave(session: Session, word: str) -> None:
    """Leave ``word`` in ``test_effects``."""
    session.execute(text("INSERT INTO test_effects VALUES (:word)"), {"word": word})
