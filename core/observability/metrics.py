"""All metrics. The processes of one worker share them in Prometheus' multiprocess mode.

Call ``share()`` before anything else in this module, since prometheus_client reads its environment when it is imported.
"""

import os
import threading
import time
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from core.observability import metric_folder
from core.observability.events import MetricsGivenUp, emit

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_making = threading.Lock()
#: The last status that was set for each job (the label ``task``), and the time when it was set, in monotonic seconds.
_said: dict[str, tuple[bool, float]] = {}

#: An unchanged status is set again after this many seconds, so that it is newer than the values of other processes.
SAY_AGAIN_SECONDS = 1.0

#: The limits of the buckets, in seconds, from a job that does nothing to the default hard limit.
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800)
#: The limits of the buckets, in seconds, between a slot and its start. The goal is 0.1 at the 99th percentile.
LATENESS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 600, 3600)


def share(folder: Path | None) -> bool:
    """Keep this process's metrics in ``folder``, by default the folder of the parent process.

    All worker processes of one ``dramatiq`` command, and the process that serves their metrics, have the same parent.
    If the folder cannot be used, the metrics stay in this process and the result is False.
    """
    given = folder or os.environ.get(MULTIPROCESS)
    try:
        path = Path(given) if given else metric_folder.of_parent(os.getppid())
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        os.environ.pop(MULTIPROCESS, None)
        emit(MetricsGivenUp(str(error)))
        return False
    os.environ[MULTIPROCESS] = str(path)
    from core.observability import metric_values

    metric_values.have_room()
    return True


def _metrics() -> Any:
    with _making:  # otherwise two threads could register each metric twice
        return _made()


@cache
def _made() -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    return SimpleNamespace(
        tasks=Counter("scheduled_task", "Ended runs and failed attempts, by status", ["task", "status"]),
        durations=Histogram("scheduled_task_duration_seconds", "How long attempts took", ["task"], buckets=DURATIONS),
        status=Gauge(
            "scheduled_task_status",
            "1 if the last attempt succeeded, 0 if it failed",
            ["task"],
            multiprocess_mode="mostrecent",
        ),
        lateness=Histogram(
            "rota_start_lateness_seconds", "From a run's due time to its start", ["task"], buckets=LATENESS
        ),
        rejected=Counter("rota_messages_rejected", "Messages that were dead-lettered unread", ["queue", "reason"]),
        operations=Counter(
            "rota_operation_items", "Runs and leftovers that operations changed or left out", ["action", "outcome"]
        ),
        leftovers=Counter("rota_leftovers_removed", "Old messages and results that were removed from Redis", ["kind"]),
        pool=Gauge(
            "rota_db_pool_connections", "Connections to PostgreSQL by state", ["state"], multiprocess_mode="livesum"
        ),
        idle_transactions=Counter(
            "rota_idle_transactions", "Transactions of runs that were idle for over 10 s", ["task"]
        ),
        paused=Gauge("rota_paused", "1 for each active pause", ["scope"], multiprocess_mode="livemax"),
        overdue=Gauge(
            "rota_slots_overdue",
            "Slots after the last successful one that should have succeeded by now",
            ["task"],
            multiprocess_mode="livemax",
        ),
        differing=Counter(
            "rota_schedules_differing", "Schedules that the daily check found to differ from the wanted ones", ["task"]
        ),
        schedules=Gauge(
            "rota_schedules", "Schedules made at run time, by state", ["task", "state"], multiprocess_mode="livemax"
        ),
        schedules_lag=Gauge(
            "rota_schedules_lag_seconds",
            "How long slots of schedules made at run time have waited to be recorded",
            ["task"],
            multiprocess_mode="livemax",
        ),
        gaps=Counter(
            "rota_schedules_gap_slots", "Slots of schedules made at run time without runs", ["task", "reason"]
        ),
        limited=Gauge("rota_runs_limited", "Runs that wait for a limit", ["limit"], multiprocess_mode="livemax"),
        waiting=Gauge(
            "rota_queue_waiting", "Runs of a queue that are due and not started", ["queue"], multiprocess_mode="livemax"
        ),
        oldest=Gauge(
            "rota_queue_oldest_seconds",
            "How long the oldest run that is due has waited to start",
            ["queue"],
            multiprocess_mode="livemax",
        ),
        succeeded=Gauge(
            "rota_last_success_timestamp_seconds",
            "When the last successful slot finished",
            ["task"],
            multiprocess_mode="livemax",
        ),
        leader=Gauge("rota_dispatcher_leader", "1 in the process whose dispatcher leads", multiprocess_mode="livesum"),
        passes=Histogram("rota_dispatcher_pass_seconds", "How long the dispatcher's passes took", buckets=DURATIONS),
        reaped=Counter("rota_processes_reaped", "Processes that died or sent no heartbeat", ["kind"]),
        travelling=Gauge(
            "rota_travelling",
            "Processes by their source of runs",
            ["by"],
            multiprocess_mode="livesum",
        ),
        recycled=Counter("rota_processes_recycled", "Processes that asked to be replaced", ["reason"]),
        web_requests=Histogram(
            "rota_web_requests_seconds", "How long requests over HTTP took", ["route", "code"], buckets=DURATIONS
        ),
        web_refused=Counter("rota_web_refused", "Refused callers of the HTTP service", ["code"]),
        log_dropped=Counter("rota_log_lines_dropped", "Log lines dropped because their reader was too slow"),
        plugins=Gauge(
            "rota_plugin_up", "1 if the plugin is loaded, 0 if it is broken", ["plugin"], multiprocess_mode="livemax"
        ),
    )


@cache
def _labelled(name: str, *labels: str) -> Any:
    """Return one series of a metric. The series is cached, since looking it up takes longer than counting."""
    metric = getattr(_metrics(), name)
    return metric.labels(*labels) if labels else metric


def run_ended(task: str, status: str, seconds: float | None = None) -> None:
    """Count an attempt, or a run that ended without an attempt. ``seconds`` is the duration of the attempt."""
    _labelled("tasks", task, status).inc()
    if seconds is not None:
        _labelled("durations", task).observe(seconds)
        if status != "cancelled":  # a cancelled attempt tells nothing about the job
            _tell_status(task, status == "succeeded")


def _tell_status(task: str, is_good: bool) -> None:
    was_good, said_at = _said.get(task, (None, 0.0))
    now = time.monotonic()
    if is_good != was_good or now - said_at >= SAY_AGAIN_SECONDS:
        _labelled("status", task).set(is_good)
        _said[task] = is_good, now


def runs_ended(task: str, counts: Mapping[str, int]) -> None:
    """Count runs that ended without an attempt, by status."""
    for status, count in counts.items():
        _labelled("tasks", task, status).inc(count)


def run_started(task: str, lateness_seconds: float) -> None:
    """Observe how late a run's first attempt started."""
    _labelled("lateness", task).observe(max(lateness_seconds, 0.0))


def message_rejected(queue: str, reason: str) -> None:
    """Count a message that was dead-lettered before any job could work on it."""
    _metrics().rejected.labels(queue, reason).inc()


def leftovers_removed(kind: str, count: int) -> None:
    """Count old messages and results that were removed from Redis."""
    _metrics().leftovers.labels(kind).inc(count)


def operation_items(action: str, changed: int, left_out: int) -> None:
    """Count the items that an operation has changed and left out."""
    for outcome, count in (("changed", changed), ("left out", left_out)):
        _metrics().operations.labels(action, outcome).inc(count)


def pool(in_use: int, idle: int) -> None:
    """Set the numbers of connections in this process's pool."""
    _metrics().pool.labels("in_use").set(in_use)
    _metrics().pool.labels("idle").set(idle)


def leading(is_leader: bool) -> None:
    """Set whether this process's dispatcher leads. If it does not, reset the metrics that only the leader sets."""
    _metrics().leader.set(is_leader)
    if not is_leader:
        paused([])
        overdue({})
        limited({})
        queues({}, {})
        schedules({})
        schedules_lag({})


def paused(scopes: Collection[str]) -> None:
    """Set which scopes are paused. Reset the scopes that are no longer paused."""
    _set_all("paused", dict.fromkeys(scopes, 1))


def overdue(slots: Mapping[str, int]) -> None:
    """Set how many slots of each job are overdue. Reset all other jobs."""
    _set_all("overdue", slots)


def limited(runs: Mapping[str, int]) -> None:
    """Set how many runs wait for the limits of each declared name. Reset all other names."""
    _set_all("limited", runs)


def queues(waiting: Mapping[str, int], oldest_seconds: Mapping[str, float]) -> None:
    """Set how many runs wait in each queue, and for how long the oldest has waited. Reset all other queues."""
    _set_all("waiting", waiting)
    _set_all("oldest", oldest_seconds)


def schedules_differ(task: str, schedules: int) -> None:
    """Count schedules of a job's keys that differ from those that its plugin wants."""
    _labelled("differing", task).inc(schedules)


def schedules(counts: Mapping[tuple[str, str], int]) -> None:
    """Set how many schedules made at run time each job has in each state. Reset all other jobs and states."""
    _set_all("schedules", counts)


def schedules_lag(seconds: Mapping[str, float]) -> None:
    """Set how long the slots of each job's keys have waited to be recorded. Reset all other jobs."""
    _set_all("schedules_lag", seconds)


def slots_in_gap(task: str, reason: str, slots: int) -> None:
    """Count slots of a job's keys that have no runs, by the reason of their gap."""
    _labelled("gaps", task, reason).inc(slots)


def succeeded_at(task: str, timestamp: float) -> None:
    """Set the time when the last successful slot of a job finished."""
    _labelled("succeeded", task).set(timestamp)


#: The labels that ``_set_all`` set last. A series that processes share cannot be removed, only set to 0.
_standing: dict[str, set[tuple[str, ...]]] = {}


def _set_all(name: str, values: Mapping[str, float] | Mapping[tuple[str, str], float]) -> None:
    wanted = {(label,) if isinstance(label, str) else label: value for label, value in values.items()}
    for gone in _standing.get(name, set()) - wanted.keys():
        _labelled(name, *gone).set(0)
    for labels, value in wanted.items():
        _labelled(name, *labels).set(value)
    _standing[name] = {labels for labels, value in wanted.items() if value}


def dispatched(seconds: float) -> None:
    """Observe the duration of a pass of the dispatcher."""
    _metrics().passes.observe(seconds)


def reaped(kind: str) -> None:
    """Count a dead process."""
    _metrics().reaped.labels(kind).inc()


def travelling(*, by_ledger: bool) -> None:
    """Set whether this process takes runs from the ledger or over Redis."""
    _metrics().travelling.labels("ledger").set(by_ledger)
    _metrics().travelling.labels("redis").set(not by_ledger)


def recycled(reason: str) -> None:
    """Count a process that asked to be replaced."""
    _metrics().recycled.labels(reason).inc()


def log_lines_dropped(lines: int) -> None:
    """Count lines of the log that were dropped."""
    _labelled("log_dropped").inc(lines)


def plugin(name: str, *, is_up: bool) -> None:
    """Set whether a plugin is loaded."""
    _metrics().plugins.labels(name).set(is_up)


def idle_in_transaction(job: str) -> None:
    """Count a transaction of a run that stays idle."""
    _metrics().idle_transactions.labels(job).inc()


def web_request(route: str, code: int, seconds: float) -> None:
    """Observe a request over HTTP. ``route`` must have no values in its path, so that there are few series."""
    _labelled("web_requests", route, str(code)).observe(seconds)


def web_refused(code: str) -> None:
    """Count a caller who was refused."""
    _labelled("web_refused", code).inc()
