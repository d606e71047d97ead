"""A virtual environment for each peer, made once and kept in ``.bench/``."""

import subprocess
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"

#: What each peer is installed from: the versions whose figures are published.
REQUIREMENTS = {
    "celery": ["celery[redis]==5.7.0"],
    "huey": ["huey[redis]==3.5.4"],
    "procrastinate": ["procrastinate==3.10.0", "psycopg[binary]"],
    "taskiq": ["taskiq==0.13.0", "taskiq-redis==1.2.4"],
}


def commands(peer: str) -> Path:
    """The folder of the peer's commands, its environment having been made if need be."""
    folder = FOLDER / peer
    ready = folder / ".ready"
    wanted = "\n".join(REQUIREMENTS[peer])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {peer} into .bench/{peer}", flush=True)
        venv.create(folder, with_pip=True, clear=True, symlinks=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *REQUIREMENTS[peer]], check=True, stderr=subprocess.DEVNULL)
        ready.write_text(wanted)
    return folder / "bin"
