"""The errors of this plugin.

MaintenanceError        a RotaError
├── UploadRootError     the upload root cannot be used; the message names the setting
├── WallError           a name or path is unsafe
├── TaskFilesGone       the files of the task are being deleted, or have been deleted
├── UnknownTask
└── NoRedis             no setting names the Redis of the sessions
"""

from core import RotaError


class MaintenanceError(RotaError):
    """The base class of this plugin's errors. Their messages never contain the name of a file."""


class UploadRootError(MaintenanceError):
    """The upload root is not set, missing, not a folder, a symlink, or not writable."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"ROTA_MAINTENANCE_UPLOAD_ROOT {problem}")


class WallError(MaintenanceError):
    """A name is unsafe, a path does not lead to the expected folder, or a tree of folders is too deep."""


class TaskFilesGone(MaintenanceError):
    """The files of this task are being deleted, or have been deleted."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"the files of task {task_id} are deleted, and the task accepts no more files")


class UnknownTask(MaintenanceError):
    """No task has this id."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"unknown task {task_id}")


class NoRedis(MaintenanceError):
    """No setting names the Redis of the sessions and the cache."""

    def __init__(self) -> None:
        super().__init__(
            "neither ROTA_MAINTENANCE_REDIS_URL nor REDIS_URL is set; expected redis://host:6379/0 of the application"
        )


def reason(error: Exception) -> str:
    """Return the reason why a file was not deleted, without its name, which the text of an OSError contains."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
