"""Rota's front door: the only names a plugin may import. Importing it opens nothing."""

from core.enqueue import enqueue, enqueue_many, publish, send, send_many
from core.errors import RotaError, TimeLimitExceeded
from core.jobs.hookspecs import hookimpl
from core.jobs.job import Job, job
from core.jobs.plugin_settings import PluginSettings
from core.jobs.run import Checkpoint, Run
from core.jobs.schedules import cron, every

__all__ = [
    "Checkpoint",
    "Job",
    "PluginSettings",
    "RotaError",
    "Run",
    "TimeLimitExceeded",
    "cron",
    "enqueue",
    "enqueue_many",
    "every",
    "hookimpl",
    "job",
    "publish",
    "send",
    "send_many",
]
