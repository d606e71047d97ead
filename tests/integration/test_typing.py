"""mypy checks a plugin in a folder of its own, in an environment in which Rota is installed."""

import subprocess
import sys

PLUGIN = """
from core import Job, Run, hookimpl, job


@job("greet")
def greet(run: Run, name: str = "you") -> dict[str, str]:
    return {"greeted": name}


class Greetings:
    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [greet]


wrong: int = greet.name
"""


def test_mypy_finds_the_types_of_core_where_rota_is_installed(tmp_path):
    (tmp_path / "greetings.py").write_text(PLUGIN)

    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir=/dev/null", "greetings.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    wrong = 'error: Incompatible types in assignment (expression has type "str", variable has type "int")  [assignment]'
    assert done.stdout.splitlines() == [
        f"greetings.py:16: {wrong}",
        "Found 1 error in 1 file (checked 1 source file)",
    ], done.stdout + done.stderr
