"""What a plugin may put around runs: ``RunMiddleware``, and the ``Attempt`` that it sees."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from core.jobs.job import Job
from core.jobs.run import Run


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a run, as a ``RunMiddleware`` sees it.

    A message of the fast lane has no run in the ledger: there ``run.id`` is 0.
    """

    job: Job
    #: What the job's function is handed; ``run.id``, ``run.attempt``, ``run.key`` and ``run.slot`` tell which it is.
    run: Run
    #: What the job's function returned, once it has.
    result: Any = None
    #: What made the attempt fail: raised by the function, by a time limit, or when its success was to be committed.
    exception: BaseException | None = None


class RunMiddleware:
    """Surrounds runs: subclass it, and return instances from the hook ``register_middleware``.

    It watches; it decides nothing. Whatever it raises or swallows, a run's outcome is what its job did, and the log
    says which plugin's middleware it was. One instance is called by many threads at once.
    """

    #: Whether it surrounds the runs of all plugins' jobs; by default, of its own plugin's alone.
    every_job: bool = False

    def around(self, attempt: Attempt) -> AbstractContextManager[object]:
        """Return a context manager that is entered before the job's function is called, and left after it.

        It is within the job's time limits and its transaction, which is committed afterwards. It sees the function's
        exception, and ``attempt.result``. Changes of context variables end with it.
        """
        return nullcontext()

    def ended(self, attempt: Attempt, state: str) -> None:
        """Called once the attempt's end is recorded: ``state`` is the run's in the ledger by then.

        That is ``succeeded``, ``retrying`` or ``dead``; or ``lost`` if another process owns the run by now. For a
        message of the fast lane, which nobody records, it is ``succeeded`` or ``failed``. Called at most once for an
        attempt, perhaps in another thread; not if the process dies or is ended at a hard limit. It has five seconds.
        """
