"""The ledger for tests: reads rows, and inserts runs."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, text


@dataclass(frozen=True)
class Ledger:
    """Reads rows of the ledger, and inserts runs."""

    engine: Engine

    def rows(self, statement: str, **parameters: Any) -> list[Row[Any]]:
        """Return the rows of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).all())

    def value(self, statement: str, **parameters: Any) -> Any:
        """Return the only value of a query."""
        ((value,),) = self.rows(statement, **parameters)
        return value

    def do(self, statement: str, **parameters: Any) -> int:
        """Execute a statement and commit. Return how many rows it changed."""
        with self.engine.begin() as connection:
            return int(connection.execute(text(statement), parameters).rowcount)  # type: ignore[attr-defined]

    def run(self, run_id: int) -> Row[Any]:
        """Return a run."""
        (row,) = self.rows("SELECT * FROM rota_runs WHERE id = :id", id=run_id)
        return row

    def runs(self, job: str) -> list[Row[Any]]:
        """Return the runs of a job: first its slots in order, then its requests."""
        return self.rows("SELECT * FROM rota_runs WHERE job = :job ORDER BY slot, id", job=job)

    def states(self, job: str) -> list[str]:
        """Return the states of the runs of a job."""
        return [row.state for row in self.runs(job)]

    def effects(self) -> list[str]:
        """Return the words that jobs have written to ``test_effects``."""
        return [row.word for row in self.rows("SELECT word FROM test_effects ORDER BY word")]

    def request(self, job: str = "work", *, key: str = "", exclusive: bool = True, **columns: Any) -> int:
        """Insert a run, and return its id."""
        values = {"job": job, "key": key, "queue": "default", "exclusive": exclusive, **columns}
        names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        statement = text(f"INSERT INTO rota_runs ({names}) VALUES ({places}) RETURNING id")
        with self.engine.begin() as connection:
            return int(connection.execute(statement, values).scalar_one())
