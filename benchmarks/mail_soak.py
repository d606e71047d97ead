"""A thousand mailboxes that are polled every minute, for ten minutes: rows, connections and memory must not grow.

The ledger begins with the polls of the hour before, since polls that found nothing are kept for an hour: without these
rows, the table would grow for an hour before the first is deleted. Messages arrive all the time. A line is printed per
minute, and at the end the growth from the third minute to the last, when pools and caches have been filled.

python -m benchmarks.mail_soak [--accounts 1000] [--minutes 10] [--threads 16] [--per-minute 60]
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from pathlib import Path

import psutil
from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks import goals
from benchmarks.harness import PROCESSES, Bench, bench
from benchmarks.mailboxes import mail_environ
from plugins.mail import add_account
from tests.support.imap_server import Folder, ImapServer, serving

MIB = 1024 * 1024
EVERY = timedelta(seconds=60)
NAMES = ("worker's parent", *(f"worker process {number}" for number in range(PROCESSES)), "scheduler")
#: The line from which growth is counted.
SETTLED = 3
#: The hour's runs of all accounts, and what they were counted for: nothing, they only fill the table.
PAST = text("""
    INSERT INTO rota_runs (job, key, queue, slot, state, attempt, args, queued_at, started_at, finished_at, due_at)
    SELECT 'poll-mailbox', account.id, 'mail', at, 'succeeded', 1,
           jsonb_build_object('account_id', account.id, 'host', account.host), at, at, at, at
    FROM mail_accounts AS account, generate_series(1, 60) AS minute,
         LATERAL (SELECT clock_timestamp() - make_interval(mins => minute, secs => account.id % 60) AS at) AS planned
""")
ROWS = text("""
    SELECT (SELECT count(*) FROM rota_runs), (SELECT count(*) FROM rota_runs WHERE job = 'poll-mailbox'),
           (SELECT count(*) FROM rota_runs WHERE state IN ('queued', 'retrying')),
           (SELECT count(*) FROM mail_messages), pg_total_relation_size('rota_runs'),
           (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid())
""")
LATE = text("""
    SELECT coalesce(extract(epoch FROM max(started_at - slot)), 0) FROM rota_runs
    WHERE job = 'poll-mailbox' AND slot IS NOT NULL AND started_at > clock_timestamp() - interval '1 minute'
""")


@dataclass(frozen=True, slots=True)
class Line:
    """What is so at one minute."""

    minute: int
    #: Of each process of NAMES.
    rss_mib: tuple[int, ...]
    postgres: int
    imap: int
    polls: int
    runs: int
    kept_polls: int
    waiting: int
    messages: int
    runs_mib: float
    latest_s: float

    def __str__(self) -> str:
        return " | ".join(str(value) for value in astuple(self))


def look(made: Bench, server: ImapServer, processes: Sequence[psutil.Process], minute: int) -> Line:
    """Measure everything once."""
    with made.engine.connect() as connection:
        runs, polls, waiting, messages, size, connections = connection.execute(ROWS).one()
        late = float(connection.scalar(LATE) or 0)
    memory = tuple(round(process.memory_info().rss / MIB) for process in processes)
    return Line(minute, memory, connections, server.opened, server.logins, runs, polls, waiting, messages,
                round(size / MIB, 1), round(late, 1))  # fmt: skip


@contextmanager
def service(made: Bench, threads: int) -> Iterator[list[psutil.Process]]:
    """The processes of a service: the scheduler, and a worker with its own processes."""
    environ = mail_environ(made.folder, "ann")
    size = ("-p", str(PROCESSES), "-t", str(threads))
    nothing = Path("/dev/null")
    with (
        made.process(nothing, "dramatiq", "core.main", *size, **environ) as worker,
        made.process(nothing, "periodiq", "core.main", **environ) as scheduler,
    ):
        time.sleep(10)  # until all of them are up
        yield [process for root in (worker, scheduler) for process in family(root.pid)]


def family(pid: int) -> list[psutil.Process]:
    """A process with its children that have Python's size; a watchdog is smaller."""
    root = psutil.Process(pid)
    return [each for each in (root, *root.children(recursive=True)) if each.memory_info().rss > 20 * MIB]


def fill(made: Bench, server: ImapServer, accounts: int) -> None:
    """Add the accounts, and the runs of the hour before."""
    with Session(made.engine) as session, session.begin():
        for number in range(accounts):
            server.folders[f"box{number}"] = Folder()
            add_account(
                session, f"box{number}", host="127.0.0.1", port=server.port, tls="none", username="ann", secret="ann",
                folder=f"box{number}", every=EVERY,
            )  # fmt: skip
        session.execute(PAST)


def arrive(server: ImapServer, minutes: float, per_minute: int, dice: random.Random) -> None:
    """Let messages arrive in mailboxes, one after the other."""
    boxes = [folder for name, folder in server.folders.items() if name != "INBOX"]
    until = time.monotonic() + minutes * 60
    while time.monotonic() < until:
        folder = dice.choice(boxes)
        folder.fill(1, start=len(folder.messages) + 1)
        time.sleep(60 / per_minute)


def tell(lines: Sequence[Line]) -> None:
    """Compare the last line with the one when everything had settled."""
    begin, end = lines[min(SETTLED, len(lines) - 1)], lines[-1]
    for name, before, after in zip(NAMES, begin.rss_mib, end.rss_mib, strict=True):
        goals.at_most(f"memory of the {name}, growth", after - before, 5, "MiB")
    goals.at_most("connections of PostgreSQL, growth", end.postgres - begin.postgres, 2, "")
    goals.at_most("polls kept, growth in thousands", (end.kept_polls - begin.kept_polls) / 1000, 6, "")
    goals.at_most("polls that wait at the end", end.waiting, 50, "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1000)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--per-minute", type=int, default=60, help="How many messages arrive.")
    options = parser.parse_args()
    dice = random.Random(1)
    lines = []
    with bench() as made, serving() as server, service(made, options.threads) as processes:
        fill(made, server, options.accounts)
        print(" | ".join(each.name for each in fields(Line)))
        for minute in range(options.minutes + 1):
            lines.append(look(made, server, processes, minute))
            print(lines[-1], flush=True)
            if minute < options.minutes:
                arrive(server, 1, options.per_minute, dice)
    tell(lines)
    print(goals.table())


if __name__ == "__main__":
    main()
