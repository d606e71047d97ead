"""The program of the guard. It ends a supervisor's programs if the supervisor has died without ending them.

``guard.py`` starts this program as a separate process. It needs only the standard library. It reads lines from a pipe
whose other end only the supervisor holds: ``+ pid signal rank`` adds a program to the guard's list, and ``- pid``
removes it. When the pipe closes, the supervisor has ended, perhaps by SIGKILL. The guard then signals the programs that
are still on its list, the lowest rank first, and kills the process groups of programs that do not end.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

#: The programs of one rank have this many seconds to end before they are killed.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05


class Ward(NamedTuple):
    """A process group that must not outlive the supervisor."""

    rank: int
    pid: int
    farewell: int


def main() -> None:
    """Keep the list of processes until the supervisor has ended. Then end these processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wards: dict[int, Ward] = {}
    for line in sys.stdin:
        word, pid, *rest = line.split()
        if word == "+":
            farewell, rank = map(int, rest)
            wards[int(pid)] = Ward(rank, int(pid), farewell)
        else:
            wards.pop(int(pid), None)
    for _, equals in groupby(sorted(wards.values()), key=lambda ward: ward.rank):
        end(list(equals))


def end(wards: Iterable[Ward]) -> None:
    """Ask all of ``wards`` to end. Kill the remaining processes of their groups after the grace."""
    left = [ward for ward in wards if tell(ward, ward.farewell)]
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # they are not children of this process, so it is not told of their end
        left = [ward for ward in left if is_alive(ward)]
    for ward in left:
        tell_group(ward, signal.SIGKILL)


def tell(ward: Ward, number: int) -> bool:
    """Signal the leader of the group. If the leader has ended, kill the group and return False."""
    try:
        os.kill(ward.pid, number)
    except ProcessLookupError:
        tell_group(ward, signal.SIGKILL)
        return False
    return True


def tell_group(ward: Ward, number: int) -> None:
    """Signal the whole group, if it still exists."""
    try:
        os.killpg(ward.pid, number)
    except ProcessLookupError:
        return


def is_alive(ward: Ward) -> bool:
    """Return whether a process of the group is left."""
    try:
        os.killpg(ward.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
