"""Routes that plugins bring: who may call them. The HTTP service calls their functions."""

from sqlalchemy.orm import Session

from core.jobs.routes import Route
from core.ledger import audit
from core.ledger.audit import Actor
from core.operations import access


def check(actor: Actor, plugin: str, route: Route) -> None:
    """Raise Forbidden unless ``actor`` may call a route of ``plugin``."""
    access.require(actor, route.role, f"{route} of the plugin {plugin}")
    access.check_plugin(actor, plugin)


def record(session: Session, actor: Actor, plugin: str, route: Route) -> None:
    """Record a call in its own transaction, unless the route changes nothing."""
    if not route.is_reading:
        audit.record(session, actor, "call", plugin, route=str(route))
