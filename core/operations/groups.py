"""People whom a proxy or an OIDC provider has identified: their groups give them a role."""

from collections.abc import Collection
from typing import Any

from core import settings
from core.errors import Forbidden, NotAuthenticated
from core.ledger.audit import Actor
from core.ledger.tokens import Rights
from core.operations.tokens import HTTP
from core.settings import GroupRole

LONGEST_NAME = 200
#: The group of every person whom the proxy or the provider names.
EVERYBODY = "*"


def person(configured: settings.Settings, name: str, groups: Collection[str], **facts: Any) -> Actor:
    """Return the person with the role of their groups. Raises NotAuthenticated or Forbidden."""
    rights = rights_of(configured, name, groups)
    plugins, queues = (None if names is None else frozenset(names) for names in (rights.plugins, rights.queues))
    return Actor(name, HTTP, rights.role, plugins, queues, rights.sees_arguments, facts)


def rights_of(configured: settings.Settings, name: str, groups: Collection[str]) -> Rights:
    """Return the rights that the groups of a person give. Raises NotAuthenticated or Forbidden.

    The first entry of ``ROTA_WEB_ROLES`` with a group of the person counts. Groups are compared exactly.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise NotAuthenticated(f"the name of the person is not printable, or has more than {LONGEST_NAME} characters")
    known = {*groups, EVERYBODY}
    found = next((each for each in settings.split_roles(configured.web_roles) if each.group in known), None)
    if found is None:
        raise Forbidden(f"{name} is in no group that has a role; ROTA_WEB_ROLES gives roles to groups")
    return rights(found)


def rights(found: GroupRole) -> Rights:
    """Return the rights of an entry of ``ROTA_WEB_ROLES``. Viewers do not see the arguments of runs."""
    return Rights(found.role, found.plugins, found.queues, found.role != "viewer")
