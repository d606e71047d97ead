"""``Secret`` marks an argument of a job as secret: its values are never shown."""

import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from core.errors import DeclarationError
from core.jobs.job import Job


class Secret:
    """Marks a parameter of a job as secret, as in ``token: Annotated[str, Secret]``.

    The values are hidden in lists, errors, tracebacks, log lines and results. The ledger stores them unchanged, since
    the job needs them.
    """


@lru_cache(maxsize=10_000)
def secret_names(job: Job) -> frozenset[str]:
    """Return the parameters of ``job`` that are secret. Its annotations must have been checked."""
    parameters = list(inspect.signature(job.function).parameters)[1:]
    hints = get_type_hints(job.function, include_extras=True) if parameters else {}
    return frozenset(name for name in parameters if Secret in marks(hints[name]))


def refuse_wrong_secrets(job: Job) -> None:
    """Raise DeclarationError if a job of the fast lane has secret parameters, or if a subject or a limit's name would
    show one.
    """
    names = sorted(secret_names(job))
    for limit in job.limits:
        if shown := [name for name in limit.arguments if name in names]:
            raise DeclarationError(
                f"job {job.name!r}: {shown[0]} cannot be Secret, since limit {limit.name!r} shows it"
            )
    if job.subject is not None and job.subject.parameter in names:
        raise DeclarationError(f"job {job.name!r}: {job.subject.parameter} cannot be Secret, since subject shows it")
    if names and not job.ledger:
        named = ", ".join(names)
        raise DeclarationError(
            f"job {job.name!r}: {named} cannot be Secret, since ledger=False keeps arguments in Redis; "
            "use the ledger, or pass a reference to the secret"
        )


def marks(annotation: Any) -> Iterator[Any]:
    """Yield the classes within ``annotation`` and the marks of ``Annotated``, at any depth."""
    for part in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield type(part) if isinstance(part, Secret) else part
        yield from marks(part)
