"""The interface of the gateway: the system that has the members of the teams, and sends the invitations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from plugins.invites.gateway.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Member:
    """A person as the gateway has them. Until they accept, they are invited, and already take a seat there."""

    email: str
    has_accepted: bool

    def __repr__(self) -> str:
        return f"Member(has_accepted={self.has_accepted})"


class Gateway(Protocol):
    """The calls that the jobs make. No call retries anything, and none may be made while a transaction is open.

    ``team`` is the gateway's own name of a team. An address is given and returned in lower case. ``request_id`` is the
    key by which the gateway recognizes a repeated request; it may forget it after some time.
    """

    def invite(self, team: str, email: str, request_id: UUID) -> Outcome:
        """Invite a person. If the person is invited or a member already, this is Done too."""

    def remove(self, team: str, email: str, request_id: UUID) -> Outcome:
        """Remove a person, invited or member. If the team does not have the person, this is Done too."""

    def find(self, team: str, email: str) -> Member | None:
        """Return a person of a team, or None if the team does not have this person. Raises ReadFailed."""

    def members(self, team: str) -> Mapping[str, Member]:
        """Return all persons of a team by their addresses.

        Raises IncompleteListing, a ReadFailed, if the pages do not make up the whole team.
        """
