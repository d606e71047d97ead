"""``Subject`` tells which row a run is about: a table, and the parameter that has the row's primary key."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A table's name as it is written without quotes, with or without its schema.
TABLE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject: the row of ``table`` whose primary key is the argument ``parameter``.

    The primary key must be one column. A job must not name a subject that it deletes itself, since runs that are
    requested after the deletion would be orphaned.
    """

    table: str
    parameter: str

    def of(self, args: Mapping[str, object]) -> str | None:
        """Return the subject of a run with these arguments, as ``table:id``, or None if the argument is missing or
        None.
        """
        value = args.get(self.parameter)
        return None if value is None else f"{self.table}:{value}"


def subject_problems(subject: object, parameters: Sequence[str]) -> list[str]:
    """Return the problems with the option ``subject`` of a job with these parameters."""
    if subject is None:
        return []
    if not isinstance(subject, Subject):
        return [f"subject={subject!r} must be Subject(table, parameter)"]
    problems = []
    if not isinstance(subject.table, str) or not TABLE.fullmatch(subject.table):
        problems.append(f"subject: table={subject.table!r} must be a name in lower case, with or without its schema")
    if subject.parameter not in parameters:
        problems.append(f"subject: parameter={subject.parameter!r} is not a parameter of the function")
    return problems
