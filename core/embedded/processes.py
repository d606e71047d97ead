"""Finds processes by a mark in their command line, and ends them, even if another process has started them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """A living process, as the system lists it."""

    pid: int
    parent: int
    command: str


def processes_of(program: str) -> Iterator[Process]:
    """Yield the processes of ``program``, without zombies.

    The processes are read from /proc, since slim containers have no ``ps``.
    """
    if not Path("/proc/self/stat").exists():
        yield from listed_by_ps(program)
        return
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            # "pid (program) state parent ...", where the program may contain any character, even ")".
            head, _, tail = (entry / "stat").read_text(errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            if head.partition("(")[2] == program and state not in {"Z", "X"}:
                yield Process(int(entry.name), int(parent), (entry / "cmdline").read_text(errors="replace"))


def listed_by_ps(program: str) -> Iterator[Process]:
    listing = subprocess.run(["ps", "-axww", "-o", "pid=,ppid=,state=,command="], capture_output=True, check=True)
    for line in listing.stdout.decode(errors="replace").splitlines():
        pid, parent, state, command = [*line.split(maxsplit=3), ""][:4]
        if program in command and not state.startswith("Z"):
            yield Process(int(pid), int(parent), command)


def marked_processes(program: str, mark: str) -> dict[int, int]:
    """Return the living processes of ``program`` with ``mark`` in their command line, each with its parent's id."""
    return {seen.pid: seen.parent for seen in processes_of(program) if mark in seen.command}


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether ``condition`` became true in time. This polls, since other processes send no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
