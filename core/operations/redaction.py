"""Hides secrets in runs that are shown to people. Every operation shows a run through ``Redactor.run``.

The secret arguments of a job are the secret arguments that the job declares here, and those that any recorded release
declared. If a job is not loaded here, all its arguments are hidden, since it is unknown which of them are secret.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection

from core.jobs.limit import ARGUMENT
from core.jobs.registry import Registry
from core.jobs.secrets import secret_names
from core.ledger import history, releases
from core.observability import redaction
from core.operations.access import WHOLE, View

#: The columns that may contain a value of an argument.
SHOWN = ("result", "progress", "error", "subject")


@dataclass(frozen=True, slots=True)
class Redactor:
    """Hides the secrets in runs of each job."""

    #: The jobs that are loaded here.
    known: Collection[str]
    #: The names of the secret arguments of each job.
    names_of: Mapping[str, Collection[str]]
    #: The names of ``ROTA_REDACT``, which are secret in all jobs.
    everywhere: frozenset[str]
    #: Whether all arguments are hidden, for a person who may not see them.
    hides_all: bool = False

    def names(self, job: str) -> frozenset[str]:
        """Return the names whose values are hidden in runs of ``job``, in lower case."""
        return self.everywhere | {name.lower() for name in self.names_of.get(job, ())}

    def arguments(self, job: str, args: Mapping[str, Any]) -> Any:
        """Return ``args`` of a run of ``job``, without secrets."""
        if job not in self.known or self.hides_all:
            return redaction.HIDDEN if args else args
        return redaction.named(args, self.names(job))

    def value(self, job: str, args: Mapping[str, Any], value: Any) -> Any:
        """Return a result, progress or text of a run of ``job`` with ``args``, without secrets."""
        names = self.names(job) | ({name.lower() for name in args} if self.hides_all else set())
        return redaction.hide_within(redaction.named(value, names), redaction.texts(args, names))

    def run(self, run: history.Run) -> history.Run:
        """Return a row of the ledger without secrets."""
        if run.job in self.known and not self.names(run.job) and not self.hides_all:
            return run
        shown = {name: self.value(run.job, run.args, getattr(run, name)) for name in SHOWN}
        if run.limits:
            shown |= self.limits(run)
        hidden: Any = SimpleNamespace(**{**run._mapping, **shown, "args": self.arguments(run.job, run.args)})
        return hidden  # type: ignore[no-any-return]  # it has the attributes of the row

    def limits(self, run: history.Run) -> dict[str, Any]:
        """Return the names of a run's limits without secrets. If the job is unknown here, return the declared names."""
        each = zip(run.limits, run.limits_declared, strict=True)
        known, hidden = run.job in self.known and not self.hides_all, self.names(run.job)
        shown = {name: limit_name(name, [declared], hidden) if known else declared for name, declared in each}
        return {"limits": [shown[name] for name in run.limits], "waits_for": shown.get(run.waits_for)}


def limit_name(name: str, declared: Sequence[str], hidden: frozenset[str]) -> str:
    """Return the name under which a limit is shown: ``name``, or the declared name if ``name`` contains a secret.

    ``name`` was filled from one of ``declared``.

    ``hidden`` has the secret names of arguments, and of fields in JSON, in lower case.
    """
    for each in declared:
        if hidden & {argument.lower() for argument in ARGUMENT.findall(each)}:
            return each
    if any(f'"{field}":' in name.lower() for field in hidden):
        return declared[0] if declared else redaction.HIDDEN
    return name


def redactor(connection: Connection, registry: Registry, view: View = WHOLE) -> Redactor:
    """Return a redactor for runs that are shown to a person. ``view`` is what the person may see."""
    names_of = releases.secrets(connection)
    for job in registry:
        if declared := secret_names(job):
            names_of[job.name] = names_of.get(job.name, frozenset()) | declared
    return Redactor(registry.jobs.keys(), names_of, redaction.redacted(), not view.has_arguments)
