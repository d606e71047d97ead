"""The errors of this plugin.

ExpiryError               a RotaError
├── UnknownTask
├── BadInstant
├── CodeTaken
├── BadPoints
├── BadReference
├── ReferenceTaken
└── InsufficientPoints
"""

from datetime import datetime

from core import RotaError


class ExpiryError(RotaError):
    """The base class of this plugin's errors."""


class UnknownTask(ExpiryError):
    """No task has this id."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"unknown task {task_id}")


class BadInstant(ExpiryError):
    """An instant has no time zone, or has passed already."""

    def __init__(self, name: str, instant: object, now: datetime) -> None:
        super().__init__(f"bad {name}={instant!r}; expected a datetime with a time zone, after {now.isoformat()}")


class CodeTaken(ExpiryError):
    """Another coupon or invitation code has this code already."""

    def __init__(self, table: str, code: str) -> None:
        super().__init__(f"{code!r} exists already in {table}; choose another code")


class BadPoints(ExpiryError):
    """The number of points cannot be granted or spent."""

    def __init__(self, points: object, most: int) -> None:
        super().__init__(f"bad points={points!r}; expected a whole number from 1 to {most}")


class BadReference(ExpiryError):
    """The reference for granting or spending points is invalid."""

    def __init__(self, longest: int) -> None:
        super().__init__(f"bad reference; expected a text of 1 to {longest} characters, none of them NUL")


class ReferenceTaken(ExpiryError):
    """The reference was already used for another number of points."""

    def __init__(self, user_id: str, reference: str, before: int, points: int) -> None:
        super().__init__(
            f"user {user_id!r}: reference {reference!r} was used for {before} points; expected {before}, not {points}"
        )


class InsufficientPoints(ExpiryError):
    """The user has too few points to spend; expired points do not count."""

    def __init__(self, user_id: str, points: int, spendable: int) -> None:
        super().__init__(f"user {user_id!r} has {spendable} points to spend, and {points} were asked for")
        #: The number of points that the user can spend.
        self.spendable = spendable
