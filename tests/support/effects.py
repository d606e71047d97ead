"""The effect of the jobs of integration tests: a word in a table, once for each commit."""

from sqlalchemy import text
from sqlalchemy.orm import Session

TABLE = "CREATE TABLE test_effects (word text PRIMARY KEY)"


def leave(session: Session, word: str) -> None:
    """Write ``word`` to ``test_effects``."""
    session.execute(text("INSERT INTO test_effects VALUES (:word)"), {"word": word})
