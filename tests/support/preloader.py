"""A process that imports once what Rota's commands import, and forks for each command that a test starts.

These imports take about a second of CPU time, and the crash tests start hundreds of commands. A command that is forked
here has its own session, environment, folder and open files, runs the script that pip has installed, and ends as every
interpreter does. Three things differ from a command that a shell starts: its parent, its command line in ``/proc``, and
when its modules were imported. So modules that read the environment on import are not imported before the fork.

``tests/support/forked.py`` starts this program, and asks it for commands.
"""

import faulthandler
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import time
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

#: What the scripts import. ``core.main`` itself is not here: it reads the settings.
FIRST = ("dramatiq.cli", "periodiq", "pendulum", "sqlalchemy.dialects.postgresql.psycopg2", "core.cli.worker")
ROOMS = ("core.ledger", "core.middleware", "core.transport.redis", "core.worker", "core.scheduling", "core.dispatcher")
#: It chooses at its import whether its values are shared, by a variable of the environment.
NOT_BEFORE_THE_FORK = "prometheus_client"
LONGEST_REQUEST = 1 << 20


def preload() -> None:
    """Import what the commands import."""
    for name in FIRST:
        import_module(name)
    for room in map(import_module, ROOMS):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            import_module(module.name)
    for plugin in entry_points(group="rota.plugins"):
        plugin.load()
    assert NOT_BEFORE_THE_FORK not in sys.modules, f"{NOT_BEFORE_THE_FORK} must be imported after the fork"


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request. Return in each forked process, with its request; end when nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that watch a command end by themselves
    while True:
        asked, received, *_ = socket.recv_fds(requests, LONGEST_REQUEST, 4)
        if not asked:
            sys.exit()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if (pid := os.fork()) != 0:
                watch(pid, received)
            take(*received)
            return json.loads(asked)
        for descriptor in received:
            os.close(descriptor)


def watch(pid: int, received: list[int]) -> None:
    """Tell the status of the command once it has ended."""
    answers, *streams = received
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(pid, 0)
    os.write(answers, b"%d" % status)
    os._exit(0)


def take(answers: int, *streams: int) -> None:
    """Have a session and these standard streams, tell the number of this process, and close all other files."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.write(answers, b"%d" % os.getpid())
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def become(command: dict[str, Any]) -> None:
    """Have what a shell would have given to the command."""
    os.environ.clear()
    os.environ.update(command["environ"])
    time.tzset()
    os.chdir(command["cwd"])
    script, *_ = sys.argv = command["words"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path(script).parent), *filter(None, given)]
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


if __name__ == "__main__":
    preload()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    become(command)
    runpy.run_path(command["words"][0], run_name="__main__")
