"""The gateway over HTTP.

| Request | Answers |
|---|---|
| ``POST /teams/{team}/invitations`` ``{"email"}`` | 201 invited; 409 ``already_member``; 409 ``no_seats`` |
| ``DELETE /teams/{team}/members/{email}`` | 204 removed; 404 ``no_member`` |
| ``GET /teams/{team}/members/{email}`` | 200 ``{"email", "state"}``; 404 ``no_member`` |
| ``GET /teams/{team}/members?after=`` | 200 ``{"members", "total", "next"}``; ``next`` is null on the last page |

A request that changes something has an ``Idempotency-Key``. An error is ``{"error": "no_seats"}``.
"""

from collections.abc import Mapping
from urllib.parse import quote
from uuid import UUID

from plugins.invites.gateway import answers
from plugins.invites.gateway.address import Address
from plugins.invites.gateway.answers import ALREADY_MEMBER, NO_MEMBER, code_of
from plugins.invites.gateway.connection import Answer, Connection, Cut, NotReached
from plugins.invites.gateway.errors import ReadFailed
from plugins.invites.gateway.gateway import Member
from plugins.invites.gateway.listing import Listing, Page
from plugins.invites.gateway.outcomes import Done, NotSent, Outcome, Unknown


class HttpGateway:
    """A Gateway that is asked over HTTP. Threads may share it."""

    def __init__(self, address: Address) -> None:
        self.connection = Connection(address)

    @property
    def name(self) -> str:
        """The gateway's name in a sentence."""
        return str(self.connection.address)

    def close(self) -> None:
        """Close all connections."""
        self.connection.client.close()

    def invite(self, team: str, email: str, request_id: UUID) -> Outcome:
        """Invite a person. If the person is invited or a member already, this is Done too."""
        sent = self._change("POST", f"/teams/{segment(team)}/invitations", request_id, {"email": email})
        if not isinstance(sent, Answer):
            return sent
        if sent.status == 409 and code_of(sent) == ALREADY_MEMBER:
            return Done(sent.status, already=True)
        if sent.status in {200, 201}:
            return answers.invited(self.name, sent, email)
        return answers.failed(self.name, sent)

    def remove(self, team: str, email: str, request_id: UUID) -> Outcome:
        """Remove a person, invited or member. If the team does not have the person, this is Done too."""
        sent = self._change("DELETE", member_path(team, email), request_id)
        if not isinstance(sent, Answer):
            return sent
        if sent.status in {200, 204}:
            return Done(sent.status)
        if sent.status == 404 and code_of(sent) == NO_MEMBER:
            return Done(sent.status, already=True)
        return answers.failed(self.name, sent)

    def find(self, team: str, email: str) -> Member | None:
        """Return a person of a team, or None if the team does not have this person. Raises ReadFailed."""
        found = self._read(member_path(team, email))
        if found.status == 404 and code_of(found) == NO_MEMBER:
            return None
        if found.status != 200:
            raise answers.unread(self.name, found)
        member = answers.member(found.body)
        if member is None or member.email != email:
            raise ReadFailed(f"{self.name} has answered about another person, or unreadably")
        return member

    def members(self, team: str) -> Mapping[str, Member]:
        """Return all persons of a team by their addresses. Raises ReadFailed, IncompleteListing in particular."""
        return Listing(self.name, lambda after: self._page(team, after)).complete()

    def _page(self, team: str, after: str | None) -> Page:
        cursor = f"?after={quote(after, safe='')}" if after is not None else ""
        found = self._read(f"/teams/{segment(team)}/members{cursor}")
        if found.status != 200:
            raise answers.unread(self.name, found)
        return answers.page(self.name, found)

    def _change(
        self, method: str, path: str, request_id: UUID, body: Mapping[str, str] | None = None
    ) -> Answer | NotSent | Unknown:
        try:
            return self.connection.exchange(method, path, body=body, headers={"Idempotency-Key": str(request_id)})
        except NotReached as error:
            return NotSent(str(error))
        except Cut as error:
            return Unknown(str(error))

    def _read(self, path: str) -> Answer:
        try:
            return self.connection.exchange("GET", path)
        except (NotReached, Cut) as error:
            raise ReadFailed(str(error)) from None


def member_path(team: str, email: str) -> str:
    """Return the path of a person."""
    return f"/teams/{segment(team)}/members/{segment(email)}"


def segment(text: str) -> str:
    """Return a text as one segment of a path. The dots of ``..`` would lead to another path."""
    return quote(text, safe="").replace(".", "%2E") if not text.strip(".") else quote(text, safe="")
