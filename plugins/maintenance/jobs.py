"""The ten jobs of maintenance, with their schedules and their retries."""

from datetime import timedelta

from core import JobDefaults, Run, cron, every
from plugins.maintenance import application_redis, cache, sessions
from plugins.maintenance.bios import update_bios
from plugins.maintenance.flea_market import delete_stale_items
from plugins.maintenance.response_times import update_response_times
from plugins.maintenance.settings import MaintenanceSettings
from plugins.maintenance.statistics import update_statistics
from plugins.maintenance.task_files import delete_files_of_completed, delete_files_of_expired
from plugins.maintenance.temp_images import delete_old_images
from plugins.maintenance.time_slots import delete_old_slots
from plugins.maintenance.upload_root import opened

LONDON = "Europe/London"

job = JobDefaults(queue="maintenance", max_retries=2, retry_delay=timedelta(seconds=300))


@job("cleanup-expired-sessions", schedule=every(hours=1))
def cleanup_expired_sessions(run: Run) -> dict[str, int]:
    """Remove leftovers of sessions: inactive sessions, and the members of users' sets whose session is gone."""
    return sessions.clean_sessions(application_redis.client(), checkpoint=run.checkpoint)


@job("cleanup-expired-cache", schedule=every(hours=1))
def cleanup_expired_cache(run: Run) -> dict[str, int]:
    """Delete cache entries without a TTL that were unused for more than 7 days."""
    return cache.delete_unused(application_redis.client(), run.now, checkpoint=run.checkpoint)


@job("cleanup-completed-task-files", schedule=cron("10 3 * * *", tz=LONDON))
def cleanup_completed_task_files(run: Run) -> dict[str, int]:
    """Delete images and files of tasks that were completed more than 3 days ago."""
    with opened(MaintenanceSettings.current().upload_root) as root:
        return delete_files_of_completed(run.session, root, run.now, checkpoint=run.checkpoint)


@job("cleanup-expired-task-files", schedule=cron("20 3 * * *", tz=LONDON))
def cleanup_expired_task_files(run: Run) -> dict[str, int]:
    """Delete images and files of tasks that have been cancelled, or past their deadline, for more than 3 days."""
    with opened(MaintenanceSettings.current().upload_root) as root:
        return delete_files_of_expired(run.session, root, run.now, checkpoint=run.checkpoint)


@job("cleanup-expired-flea-market-items", schedule=cron("30 3 * * *", tz=LONDON))
def cleanup_expired_flea_market_items(run: Run) -> dict[str, int]:
    """Delete flea-market items that were not refreshed for more than 10 days, with their images."""
    with opened(MaintenanceSettings.current().upload_root) as root:
        return delete_stale_items(run.session, root, run.now, checkpoint=run.checkpoint)


@job("cleanup-unused-temp-images", schedule=every(hours=1))
def cleanup_unused_temp_images(run: Run) -> dict[str, int]:
    """Delete temporary images older than 24 hours, up to a limit per run.

    The next run continues at the same position.
    """
    settings = MaintenanceSettings.current()
    with opened(settings.upload_root) as root:
        return delete_old_images(
            run.session,
            root,
            run.now,
            checkpoint=run.checkpoint,
            limit=settings.temp_images_per_run,
            entries=settings.temp_entries_per_run,
        )


@job("cleanup-expired-time-slots", schedule=cron("40 3 * * *", tz=LONDON))
def cleanup_expired_time_slots(run: Run) -> dict[str, int]:
    """Delete time slots that are past their retention and whose tasks are all completed or cancelled."""
    retention = timedelta(days=MaintenanceSettings.current().time_slot_retention_days)
    return delete_old_slots(run.session, run.now, retention=retention, checkpoint=run.checkpoint)


@job("update-all-users-statistics", schedule=every(minutes=10))
def update_all_users_statistics(run: Run) -> dict[str, int]:
    """Recompute the statistics of users whose tasks or reviews have changed."""
    return update_statistics(run.session, run.now, checkpoint=run.checkpoint)


@job("update-featured-task-experts-response-time", schedule=cron("0 4 * * *", tz=LONDON))
def update_featured_task_experts_response_time(run: Run) -> dict[str, int]:
    """Recompute the average response time of featured experts."""
    return update_response_times(run.session, run.now, checkpoint=run.checkpoint)


@job("update-task-experts-bio", schedule=cron("10 4 * * *", tz=LONDON))
def update_task_experts_bio(run: Run) -> dict[str, int]:
    """Rebuild the summary bios of experts."""
    return update_bios(run.session, run.now, checkpoint=run.checkpoint)
