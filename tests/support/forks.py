"""Installs the plugins with jobs that fork or are untidy beside the chaos plugin, and requests their runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.support.eventually import eventually
from tests.support.fleet import Fleet

OVER = ("succeeded", "dead", "skipped")
REQUEST = text("""
    INSERT INTO rota_runs (job, queue, exclusive, args) VALUES (:job, 'chaos', false, CAST(:args AS jsonb)) RETURNING id
""")


def install(folder: Path, name: str = "forking") -> None:
    """Write the plugin in the file of that name into ``folder``, beside the chaos plugin."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rota.plugins]\n{name} = {name}_jobs:plugin\n")
    shutil.copy(Path(__file__).with_name(f"{name}.py"), folder / f"{name}_jobs.py")


@dataclass(frozen=True)
class Asking:
    """Requests runs with arguments from a fleet."""

    fleet: Fleet

    def ask(self, job: str, **args: Any) -> int:
        """Request a run, and return its id."""
        with self.fleet.engine.begin() as connection:
            run_id: int = connection.execute(REQUEST, {"job": job, "args": json.dumps(args)}).scalar_one()
            connection.exec_driver_sql("NOTIFY rota_due")
        return run_id

    def row(self, run_id: int) -> Any:
        """Return the row of a run."""
        return self.fleet.rows("SELECT * FROM rota_runs WHERE id = :id", id=run_id)[0]

    def end_of(self, run_id: int, *, within: float = 30) -> Any:
        """Wait for the end of a run, and return its row."""
        eventually(lambda: self.row(run_id).state in OVER, within=within)
        return self.row(run_id)

    def run(self, job: str, **args: Any) -> Any:
        """Request a run, wait for its end, and return its row."""
        return self.end_of(self.ask(job, **args))
