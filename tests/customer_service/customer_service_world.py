"""Makes agents and users for the tests, and threads that start at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.customer_service import agent_online, end_chat, join_queue, record_message, register_agent
from plugins.customer_service.assignment import assign_waiting_users
from plugins.customer_service.models import Agent, Chat, Notification, QueueEntry
from plugins.customer_service.timeout_warnings import warn_quiet_chats

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@dataclass
class World:
    """Makes rows and changes with one call each. Every method commits."""

    session: Session
    checkpoints: list[dict[str, int]] = field(default_factory=list)

    def checkpoint(self, progress: dict[str, int] | None = None) -> None:
        self.checkpoints.append(dict(progress or {}))
        self.session.commit()

    def agent(self, agent_id: str, *, capacity: int = 1, rating: str = "0", online: bool = True) -> None:
        register_agent(self.session, agent_id, agent_id.title(), capacity=capacity, rating=Decimal(rating))
        if online:
            agent_online(self.session, agent_id)
        self.session.commit()

    def waiting(self, *user_ids: str, since: datetime = NOON) -> None:
        """Let users join a second apart, the first at ``since``."""
        for second, user_id in enumerate(user_ids):
            join_queue(self.session, user_id, since + timedelta(seconds=second))
        self.session.commit()

    def assign(self, now: datetime = NOON) -> int:
        counts = assign_waiting_users(self.session, now, checkpoint=self.checkpoint)
        self.session.commit()
        return counts["assigned"]

    def chat(self, user_id: str = "ann", agent_id: str = "zoe", *, now: datetime = NOON) -> int:
        """Return an active chat that started at ``now``, with an agent who has one place."""
        self.agent(agent_id, capacity=1)
        self.waiting(user_id, since=now)
        assert self.assign(now) == 1
        return self.session.scalars(select(Chat.id).where(Chat.user_id == user_id, Chat.state == "active")).one()

    def warns(self, now: datetime = NOON + timedelta(minutes=1)) -> int:
        """Let quiet chats be warned. Return the number of warnings."""
        return warn_quiet_chats(self.session, now, checkpoint=self.checkpoint)["warned"]

    def says(self, chat_id: int, sender: str, now: datetime, text: str = "hello") -> None:
        record_message(self.session, chat_id, sender, text, now)
        self.session.commit()

    def ends(self, chat_id: int, now: datetime = NOON, by: str = "user") -> bool:
        ended = end_chat(self.session, chat_id, now, by=by)
        self.session.commit()
        return ended

    def told(self, kind: str) -> list[tuple[str, str]]:
        """Return the kind and the id of each recipient of notifications of that kind, in order."""
        stored = select(Notification.recipient_kind, Notification.recipient_id).where(Notification.kind == kind)
        return [tuple(row) for row in self.session.execute(stored.order_by(Notification.id))]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the user and the agent of every chat, in the order of assignment."""
        rows = self.session.execute(select(Chat.user_id, Chat.agent_id).order_by(Chat.id))
        return [(user, agent) for user, agent in rows]

    def get_chat(self, chat_id: int) -> Chat:
        self.session.expire_all()
        return self.session.get_one(Chat, chat_id)

    def get_agent(self, agent_id: str = "zoe") -> Agent:
        self.session.expire_all()
        return self.session.get_one(Agent, agent_id)

    def states(self) -> dict[str, str]:
        """Return the state of each user's latest queue entry."""
        entries = select(QueueEntry.user_id, QueueEntry.state).order_by(QueueEntry.id)
        return dict(self.session.execute(entries).all())


def at_once(number: int, work: Callable[[int], object]) -> list[object]:
    """Run ``work(0)`` … ``work(number - 1)`` in threads that start at the same time. Return the results."""
    barrier = threading.Barrier(number, timeout=60)

    def set_off(index: int) -> object:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(set_off, range(number), timeout=110))
