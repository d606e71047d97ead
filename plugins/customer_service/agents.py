"""Agents: whether they are online, and how many chats each may have."""

from decimal import Decimal

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from plugins.customer_service.errors import UnknownAgent
from plugins.customer_service.models import Agent
from plugins.customer_service.triggers import trigger_assignment


def register_agent(session: Session, agent_id: str, name: str, *, capacity: int, rating: Decimal | None = None) -> None:
    """Create an agent, who is offline at first, or change the agent with this id.

    ``rating`` is from 0 to 5. Without a rating, a new agent has 0, and a known agent keeps the present rating.
    """
    profile: dict[str, object] = {"name": name, "capacity": capacity} | ({} if rating is None else {"rating": rating})
    registration = insert(Agent).values(id=agent_id, **profile)
    session.execute(registration.on_conflict_do_update(index_elements=[Agent.id], set_=profile))
    trigger_assignment(session)


def agent_online(session: Session, agent_id: str) -> bool:
    """Mark the agent as online, and trigger an assignment.

    Return False, and trigger nothing, if the agent was online already. Raises UnknownAgent.
    """
    came = _set_online(session, agent_id, True)
    if came:
        trigger_assignment(session)
    return came


def agent_offline(session: Session, agent_id: str) -> bool:
    """Mark the agent as offline: the agent gets no new chats, and active chats continue.

    Return False if the agent was offline already. Raises UnknownAgent.
    """
    return _set_online(session, agent_id, False)


def set_capacity(session: Session, agent_id: str, capacity: int) -> None:
    """Set how many chats the agent may have at once, 0 or more, and trigger an assignment.

    Raises UnknownAgent.
    """
    changed = session.scalar(update(Agent).where(Agent.id == agent_id).values(capacity=capacity).returning(Agent.id))
    if changed is None:
        raise UnknownAgent(agent_id)
    trigger_assignment(session)


def _set_online(session: Session, agent_id: str, online: bool) -> bool:
    changed = session.scalar(
        update(Agent)
        .where(Agent.id == agent_id, Agent.is_online.is_not(online))
        .values(is_online=online)
        .returning(Agent.id)
    )
    if changed is None:
        _require(session, agent_id)
    return changed is not None


def _require(session: Session, agent_id: str) -> None:
    if session.scalar(select(Agent.id).where(Agent.id == agent_id)) is None:
        raise UnknownAgent(agent_id)
