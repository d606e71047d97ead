"""The errors of this plugin.

MaintenanceError         a RotaError
├── UploadRootError      the upload root cannot be used; names the setting
├── WallError            a name that leads, or would lead, out of where it belongs; nothing was touched
├── TaskFilesGone        the task's files are being deleted, or are; it takes no more
├── UnknownTask
└── NoRedis              no setting says where the sessions are
"""

from core import RotaError


class MaintenanceError(RotaError):
    """The root of every error of this plugin. Never holds the name of a file."""


class UploadRootError(MaintenanceError):
    """The upload root is not set, missing, not a folder, a symlink, or not writable."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"ROTA_MAINTENANCE_UPLOAD_ROOT {problem}")


class WallError(MaintenanceError):
    """An unsafe name, a path that is not (or no longer) the expected folder, or a tree that is too deep."""


class TaskFilesGone(MaintenanceError):
    """The files of this task are being deleted, or are."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"the files of task {task_id} are deleted, it takes no more")


class UnknownTask(MaintenanceError):
    """No task has that id."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"unknown task {task_id}")


class NoRedis(MaintenanceError):
    """No setting names the Redis of the sessions and the cache."""

    def __init__(self) -> None:
        super().__init__(
            "neither ROTA_MAINTENANCE_REDIS_URL nor REDIS_URL is set; expected redis://host:6379/0 of the application"
        )


def reason(error: Exception) -> str:
    """Why a file was not deleted, without its name, which an OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
