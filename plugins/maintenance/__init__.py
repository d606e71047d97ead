"""Maintenance: removes old sessions, cache entries, files and rows, and keeps statistics current.

An application calls the functions below. Functions that take a session run in the application's transaction.
"""

from pathlib import Path

from core import Job, PluginSettings, hookimpl
from plugins.maintenance import jobs
from plugins.maintenance.errors import (
    MaintenanceError,
    NoRedis,
    TaskFilesGone,
    UnknownTask,
    UploadRootError,
    WallError,
)
from plugins.maintenance.flea_market import refresh_item
from plugins.maintenance.sessions import clean_sessions, on_login, on_logout
from plugins.maintenance.settings import MaintenanceSettings
from plugins.maintenance.task_files import record_file

__all__ = [
    "Maintenance",
    "MaintenanceError",
    "NoRedis",
    "TaskFilesGone",
    "UnknownTask",
    "UploadRootError",
    "WallError",
    "clean_sessions",
    "on_login",
    "on_logout",
    "record_file",
    "refresh_item",
]


class Maintenance:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [
            jobs.cleanup_expired_sessions,
            jobs.cleanup_expired_cache,
            jobs.cleanup_completed_task_files,
            jobs.cleanup_expired_task_files,
            jobs.cleanup_expired_flea_market_items,
            jobs.cleanup_unused_temp_images,
            jobs.cleanup_expired_time_slots,
            jobs.update_all_users_statistics,
            jobs.update_featured_task_experts_response_time,
            jobs.update_task_experts_bio,
        ]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return MaintenanceSettings
