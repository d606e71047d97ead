"""``RunMiddleware``, with which a plugin surrounds runs, and ``Attempt``, which the middleware gets."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from core.jobs.job import Job
from core.jobs.run import Run


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt of a run, as a ``RunMiddleware`` sees it.

    A message of the fast lane has no run in the ledger, and its ``run.id`` is 0.
    """

    job: Job
    #: The argument of the job's function. Its ``id``, ``attempt``, ``key`` and ``slot`` identify the attempt.
    run: Run
    #: The value that the job's function returned; None before that.
    result: Any = None
    #: The error that made the attempt fail: raised by the function, by a time limit, or by the commit.
    exception: BaseException | None = None


class RunMiddleware:
    """Surrounds runs: subclass it, and return instances from the hook ``register_middleware``.

    The middleware observes runs and cannot change their outcome. An error that the middleware raises is logged with the
    plugin's name. An error of the job fails the run even if the middleware suppresses the error. Many threads call one
    instance at the same time.
    """

    #: Whether the middleware surrounds the runs of all plugins' jobs. By default, it surrounds only those of its own
    #: plugin.
    every_job: bool = False

    def around(self, attempt: Attempt) -> AbstractContextManager[object]:
        """Return a context manager that is entered before the job's function is called, and exited after it.

        The context manager runs within the job's time limits and its transaction. The transaction is committed
        afterwards. It sees the function's exception, and ``attempt.result``. Its changes of context variables are
        undone when it exits.
        """
        return nullcontext()

    def ended(self, attempt: Attempt, state: str) -> None:
        """Handle the end of the attempt, after its outcome was recorded. ``state`` is the run's state in the ledger.

        ``state`` is ``succeeded``, ``retrying`` or ``dead``. It is ``cancelled`` for a dead run that was cancelled, and
        ``lost`` if another process owns the run now. For a message of the fast lane, which has no row in the ledger,
        ``state`` is ``succeeded`` or ``failed``. The method is called at most once per attempt, perhaps in another
        thread, and must return within five seconds. It is not called if the process dies or is ended at a hard limit.
        """
