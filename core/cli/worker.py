"""``rota worker``: runs worker processes under a supervisor. When one of them ends, the others continue."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import click

from core import settings
from core.cli.programs import guarded, pool_size, script
from core.errors import suggestion
from core.observability import logs
from core.observability.events import WorkerStopped, WorkerStopping, emit
from core.plugins import loading
from core.settings import Settings
from core.supervisor.guard import Guard
from core.supervisor.programs import Command, Signals
from core.supervisor.replacement import Worker
from core.supervisor.silence import MARGIN_SECONDS
from core.supervisor.supervisor import Supervisor
from core.supervisor.worker_channel import ChannelServer

DEFAULT_PROCESSES = 2


class Queue(click.ParamType[str]):
    """The name of a queue that a loaded job uses."""

    name = "queue"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = {job.queue for job in loading.current()}
        if value not in known:
            self.fail(f"unknown queue {value!r}{suggestion(value, known)}; no loaded job uses it", param, ctx)
        return value


@click.command()
@click.option("--processes", type=click.IntRange(1, 64), help="Worker processes.  [default: 2; 1 in local mode]")
@click.option(
    "--threads", type=click.IntRange(1, 500), default=8, show_default=True, help="Threads per worker process."
)
@click.option("-Q", "--queue", "queues", type=Queue(), multiple=True, help="Only this queue; may be repeated.")
@click.option(
    "--grace",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="At a stop: the time in which running jobs may finish.",
)
def worker(processes: int | None, threads: int, queues: tuple[str, ...], grace: float) -> None:
    """Run jobs in worker processes, which are restarted when they die.

    Each process is an independent Dramatiq worker: when one dies, the others continue. A process that has worked on
    ROTA_MAX_MESSAGES_PER_PROCESS messages, or uses more memory than ROTA_MAX_MEMORY_MB, is replaced by a new process,
    and ends when its runs are finished. With SCHEDULER_MODE=local there is one process, which needs neither Redis nor a
    scheduler.

    After SIGTERM or Ctrl-C, running jobs may finish within the grace period. Runs that do not finish are released, and
    another worker takes them. After a second signal, the processes are killed.

    \b
      rota worker --processes 4 --threads 8
      rota worker -Q billing -Q reports --processes 1
      SCHEDULER_MODE=local rota worker
    """
    from core.operations import fitness

    configured = settings.load()
    logs.configure(configured.log_format, configured.log_level)
    processes = number_of(processes, configured)
    fitness.refuse_unfit(configured)
    refuse_reservations(configured, threads, queues)
    with (
        Signals() as signals,
        guarded() as guard,
        ChannelServer() as channel,
        tempfile.TemporaryDirectory(prefix="rota-metrics-", ignore_cleanup_errors=True) as folder,
    ):
        environ = {"ROTA_METRICS_DIR": folder, "ROTA_DB_POOL_SIZE": pool_size(threads), **os.environ}
        commands = [
            *workers(environ, configured, channel, processes, threads, queues, grace),
            *metrics_server(environ, configured),
        ]
        work(Supervisor(signals, guard, channel), commands, signals, guard, grace)


def work(supervisor: Supervisor, commands: Sequence[Command], signals: Signals, guard: Guard, grace: float) -> None:
    """Keep the commands running until a signal asks to stop."""
    try:
        for command in commands:
            if not signals.asked:
                supervisor.start(command)
        supervisor.keep_running()
        emit(WorkerStopping(grace))
    finally:
        supervisor.stop(grace)
    emit(WorkerStopped())


def number_of(processes: int | None, configured: Settings) -> int:
    """Return how many processes to start. Raises click.UsageError for several in local mode."""
    if configured.mode != "local":
        return processes or DEFAULT_PROCESSES
    if processes is not None and processes > 1:
        raise click.UsageError("SCHEDULER_MODE=local runs one process: --processes must be 1; use more --threads")
    return 1


def refuse_reservations(configured: Settings, threads: int, queues: Sequence[str] = ()) -> None:
    """Raise click.UsageError if ROTA_RESERVED_THREADS leaves too few threads of a process for other queues."""
    from core.transport import reservations

    registry = loading.current()
    reserved = reservations.reservations(settings.split_reservations(configured.reserved_threads), registry)
    served = set(queues) or reserved.keys()
    problem = reservations.too_few(threads, [each for queue, each in reserved.items() if queue in served])
    if problem:
        raise click.UsageError(problem)


def workers(
    environ: Mapping[str, str],
    configured: Settings,
    channel: ChannelServer,
    processes: int,
    threads: int,
    queues: Sequence[str] = (),
    grace: float = 60,
) -> Iterator[Worker]:
    """Yield the worker processes. They do not serve metrics, since ``metrics_server`` serves the metrics of all."""
    only = ["--queues", *queues] if queues else []
    for_jobs = max(grace - 5, grace / 2)  # the rest of the grace is for the release of unfinished runs
    if configured.mode == "local":
        words = [sys.executable, "-m", "core.worker.local", f"--threads={threads}", f"--grace={for_jobs}", *only]
    else:
        # Dramatiq's parent process does not use Rota's logging. Its lines are not JSON, and repeat what Rota logs.
        limits = [f"--worker-shutdown-timeout={round(for_jobs * 1000)}", "--skip-logging"]
        words = [script("dramatiq"), "core.main", "--processes=1", f"--threads={threads}", *limits, *only]
    silence = configured.lease_seconds + MARGIN_SECONDS
    quiet = {**environ, "ROTA_METRICS_PORT": "0"}
    for number in range(1, processes + 1):
        yield Worker(f"worker-{number}", words, quiet, channel=channel, silence_seconds=silence)


def metrics_server(environ: Mapping[str, str], configured: Settings) -> Iterator[Command]:
    """Yield the command that serves the metrics of all processes, unless metrics are turned off."""
    if configured.metrics_port:
        yield Command("metrics", [sys.executable, "-m", "core.worker.metrics_port"], environ)
