"""The errors of this plugin. None contains an address, since addresses are personal data.

InvitesError              a RotaError
├── BadAddress
├── BadValue
├── TeamTaken
├── SeatsTaken
├── TeamFull
├── TeamClosed
├── AlreadyThere
├── MoveUnderWay
├── CodeRefused
├── UnknownTeam           also a NotFound
└── UnknownMember         also a NotFound
"""

from core import NotFound, RotaError


class InvitesError(RotaError):
    """The base class of this plugin's errors."""


class BadAddress(InvitesError):
    """A text is not an e-mail address. The message has the reason without the text."""


class BadValue(InvitesError):
    """A number or a name is not usable."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"bad {name}={value!r}; expected {expected}")


class TeamTaken(InvitesError):
    """Another team has this name, or this name at the gateway."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is a team with the name {name!r}, or with its name at the gateway; choose another name"
        )


class SeatsTaken(InvitesError):
    """A team's seats cannot be lowered below the number of those that are taken."""

    def __init__(self, name: str, taken: int, seats: int) -> None:
        super().__init__(f"{taken} seats of team {name!r} are taken, so it cannot have {seats}; remove members first")


class TeamFull(InvitesError):
    """A team has no free seat, or others wait for its free seats."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"team {name!r} has no free seat, or others wait for it; give it more seats, or choose another team"
        )


class TeamClosed(InvitesError):
    """A team takes nobody in, or not now, since the gateway has asked for a wait or has no seat for it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"team {name!r} is closed, or gives no seats now; see `rota invites teams`, or choose another team"
        )


class AlreadyThere(InvitesError):
    """The person has a seat of this team, or of another team of its pool that is not the seat to move from."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the person has a seat of team {name!r} or of its pool already")


class MoveUnderWay(InvitesError):
    """A person who is moving cannot be moved or removed until the move has ended."""

    def __init__(self) -> None:
        super().__init__("the person is moving to another team; wait until the move has ended")


class CodeRefused(InvitesError):
    """A code gives no seat: it is unknown, used up or over. The message does not have the code."""


class UnknownTeam(InvitesError, NotFound):
    """There is no team with this name."""

    def __init__(self, name: object) -> None:
        super().__init__(f"unknown team {name!r}; `rota invites teams` has their names")


class UnknownMember(InvitesError, NotFound):
    """The person has no seat of this team."""

    def __init__(self, team: str) -> None:
        super().__init__(f"the person has no seat of team {team!r}")
