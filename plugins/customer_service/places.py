"""The number of each agent's active chats, ``current_chats``, and how this number is kept correct.

A capacity may be lowered below the number of chats that an agent has. The agent keeps these chats, and gets no new chat
until the number is below the capacity again. So the database cannot check ``current_chats <= capacity``; the assignment
checks it, with the agent's row locked.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import Integer, ScalarSelect, Text, column, func, select, update, values
from sqlalchemy.orm import Session

from core import isolate, report_refused
from plugins.customer_service.models import Agent, Chat, ChatState
from plugins.customer_service.sweeps import UNSYNCHRONISED

#: When a chat ends, the agent's row is tried for this long, and at this interval. Most transactions are shorter.
PATIENCE, PAUSE = timedelta(seconds=1), timedelta(milliseconds=10)


def active_chats() -> ScalarSelect[int]:
    """Return how many active chats the agent of the row has."""
    chats = select(func.count()).where(Chat.agent_id == Agent.id, Chat.state == ChatState.ACTIVE)
    return chats.correlate(Agent).scalar_subquery()


def free_places(session: Session, agent_ids: Iterable[str]) -> None:
    """Lower the chat count of each agent by one for each time that the agent is named. The caller has locked the rows.

    A count never becomes negative. So a count that is too low does not prevent the end of a chat.
    """
    freed = Counter(agent_ids)
    if not freed:
        return
    places = values(column("agent_id", Text), column("chats", Integer), name="freed").data(list(freed.items()))
    left = update(Agent).where(Agent.id == places.c.agent_id)
    count = func.greatest(Agent.current_chats - places.c.chats, 0)
    session.execute(left.values(current_chats=count), execution_options=UNSYNCHRONISED)


def lock_free(session: Session, agent_ids: Iterable[str]) -> set[str]:
    """Lock the rows of the agents that no other transaction has locked. Return these agents' ids."""
    free = select(Agent.id).where(Agent.id.in_({*agent_ids}))
    return {*session.scalars(free.with_for_update(key_share=True, skip_locked=True))}


def lock_soon(session: Session, agent_ids: Iterable[str]) -> set[str]:
    """Lock the rows of the agents that become free within ``PATIENCE``. Return these agents' ids.

    The function tries repeatedly and never waits for a lock, so it cannot be part of a deadlock.
    """
    wanted = {*agent_ids}
    locked = lock_free(session, wanted)
    for _ in range(PATIENCE // PAUSE):
        if locked == wanted:
            break
        time.sleep(PAUSE.total_seconds())
        locked = lock_free(session, wanted)
    return locked


def count_again(session: Session) -> int:
    """Correct wrong counts, and log their agents. Return the number of corrected counts.

    An agent whose row is locked is skipped: the transaction that has the lock may be correcting the count.
    """
    counted, wrong = active_chats(), Agent.current_chats != active_chats()
    agent_ids = session.scalars(select(Agent.id).where(wrong).order_by(Agent.id)).all()

    def correct(ids: Sequence[str]) -> dict[str, int]:
        # This is a separate statement, so it sees everything that was committed before the lock was acquired.
        mended = update(Agent).where(Agent.id.in_(lock_free(session, ids)), wrong).values(current_chats=counted)
        named.extend(session.scalars(mended.returning(Agent.id), execution_options=UNSYNCHRONISED))
        return {}

    named: list[str] = []
    _, refused = isolate(session, agent_ids, correct, table=Agent.__tablename__)
    if named:
        report_refused(Agent.__tablename__, [repr(agent_id) for agent_id in named], "current_chats was wrong")
    return len(named) + len(refused)
