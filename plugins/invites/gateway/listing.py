"""The listing of a team, complete or not at all.

A listing of several pages is not one moment: a member may move to a page that was already read. So the number of
members must be the same on every page, and must be the number of the members that the pages have.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from plugins.invites.gateway.errors import IncompleteListing
from plugins.invites.gateway.gateway import Member

#: A team has at most this many pages. A gateway that always names a further page must not hold a job for ever.
MOST_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Page:
    """Some members by their addresses as the gateway writes them, the number of all members, and the cursor of the next
    page, or None after the last page.
    """

    members: Mapping[str, Member]
    total: int
    following: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing that ``fetch`` reads page by page. ``name`` is the gateway's name in a sentence."""

    name: str
    fetch: Callable[[str | None], Page]

    def complete(self) -> dict[str, Member]:
        """Return all members by their addresses. Raises IncompleteListing, and the errors of ``fetch``."""
        found: dict[str, Member] = {}
        totals: set[int] = set()
        for page in self._pages():
            found.update(page.members)
            totals.add(page.total)
        if totals != {len(found)}:
            told = " and then ".join(map(str, sorted(totals)))
            raise IncompleteListing(f"{self.name} has listed {len(found)} members of a team of {told}")
        return {member.email: member for member in found.values()}

    def _pages(self) -> Iterator[Page]:
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = self.fetch(cursor)
            yield page
            if page.following is None:
                return
            if page.following == cursor:
                raise IncompleteListing(f"{self.name} has named the same page of a listing twice")
            cursor = page.following
        raise IncompleteListing(f"{self.name} has listed a team on more than {MOST_PAGES} pages")
