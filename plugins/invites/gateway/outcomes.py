"""The outcomes of a request that changes something at the gateway. An outcome is a value and not an exception, since
each of them is to be expected.

The texts are for people, and contain neither addresses of persons nor secrets.
"""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Done:
    """The gateway has confirmed the change. ``already`` says that there was nothing left to change.

    ``has_accepted`` says that the invited person is known to be a member already.
    """

    status: int
    already: bool = False
    has_accepted: bool = False


@dataclass(frozen=True, slots=True)
class NoSeats:
    """The team has no free seat at the gateway. Nothing was changed."""

    status: int
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway refuses the person or the request for good. Nothing was changed."""

    status: int
    why: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The gateway has not taken the request, and a person may have to act. Nothing was changed."""

    why: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request was sent, and no answer tells whether the change was made. Ask again with the same request id."""

    why: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """The gateway wants no request of this team for ``wait``. ``is_certain`` says that nothing was changed."""

    wait: timedelta
    why: str
    status: int
    is_certain: bool


Outcome = Done | NoSeats | Refused | NotSent | Unknown | Limited
