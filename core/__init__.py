"""Rota's public names. A plugin may import only these. Importing this package does not connect to a server."""

from core.cancel import cancel
from core.close_limit import close_limit
from core.commands import command_session, print_rows
from core.enqueue import enqueue, enqueue_many, publish, send, send_many
from core.errors import Cancelled, Later, NaiveTime, NotFound, RotaError, TimeLimitExceeded
from core.jobs.commands import Command
from core.jobs.defaults import JobDefaults
from core.jobs.hookspecs import hookimpl
from core.jobs.job import Job, job
from core.jobs.keyed import Keyed, KeySchedule
from core.jobs.limit import Limit
from core.jobs.middleware import Attempt, RunMiddleware
from core.jobs.plugin_settings import PluginSettings
from core.jobs.routes import Route
from core.jobs.run import Checkpoint, Run
from core.jobs.schedules import cron, every
from core.jobs.secrets import Secret
from core.jobs.subject import Subject
from core.key_schedules import (
    ScheduledKey,
    Synced,
    pause_schedule,
    resume_schedule,
    schedule,
    schedules,
    sync_schedules,
    unschedule,
)
from core.service_redis import service_redis
from core.sweeps import in_batches, isolate, report_refused, sweep
from core.tables import Instant, Tables, require_aware

__all__ = [
    "Attempt",
    "Cancelled",
    "Checkpoint",
    "Command",
    "Instant",
    "Job",
    "JobDefaults",
    "KeySchedule",
    "Keyed",
    "Later",
    "Limit",
    "NaiveTime",
    "NotFound",
    "PluginSettings",
    "RotaError",
    "Route",
    "Run",
    "RunMiddleware",
    "ScheduledKey",
    "Secret",
    "Subject",
    "Synced",
    "Tables",
    "TimeLimitExceeded",
    "cancel",
    "close_limit",
    "command_session",
    "cron",
    "enqueue",
    "enqueue_many",
    "every",
    "hookimpl",
    "in_batches",
    "isolate",
    "job",
    "pause_schedule",
    "print_rows",
    "publish",
    "report_refused",
    "require_aware",
    "resume_schedule",
    "schedule",
    "schedules",
    "send",
    "send_many",
    "service_redis",
    "sweep",
    "sync_schedules",
    "unschedule",
]
