"""Starts the guard, a process that ends the supervisor's programs if the supervisor is killed."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from core.observability.events import SupervisorGuardLost, emit
from core.supervisor.programs import Program

GUARD = Path(__file__).with_name("guard_process.py")


class Guard:
    """A child process that ends all other children if this process is killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(GUARD)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def watch(self, program: Program, farewell: signal.Signals = signal.SIGTERM, *, rank: int = 0) -> None:
        """End ``program`` with the signal ``farewell`` if this process dies. Programs with a higher rank end later."""
        if program.pid is not None:
            self._tell(f"+ {program.pid} {farewell.value} {rank}")

    def forget(self, program: Program) -> None:
        """Stop watching ``program``, which has ended."""
        if program.pid is not None:
            self._tell(f"- {program.pid}")

    def dismiss(self) -> None:
        """End the guard, which first ends every program that it still watches."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except OSError as error:
            emit(SupervisorGuardLost(str(error)))
