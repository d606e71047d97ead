"""Active chats: messages, time-outs, and how each chat ends exactly once.

The function that locks the row of an active chat ends the chat and frees the agent's place. All other functions then
find that the chat has ended.

**One lock order.** An application may call several functions in one transaction, which holds the locks of each call
until it commits. Two rules prevent deadlocks:

* A function that is called for a row waits only for that row. So ``end_chat`` waits for the chat. It waits for the
  agent's row only if its transaction holds no other lock. Otherwise, if another transaction keeps the agent's row
  locked for longer than a moment, the chat ends without an update of the agent, and the time-out sweep counts the
  agent's chats again.
* Jobs do not wait while they hold a row; see ``sweeps.py`` and ``assignment.py``.

Two transactions can still wait for each other if they call functions for the same rows in opposite orders; so call them
for agents first, then for chats, then for users, each in the order of their ids. ``end_chat`` needs no order: it does
not wait for another transaction that is ending the same chat.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, case, func, insert, null, select, text, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from plugins.customer_service.errors import ChatEnded, UnknownChat
from plugins.customer_service.instants import at
from plugins.customer_service.models import Agent, Chat, ChatState, EndReason, EntryState, Message, QueueEntry, Side
from plugins.customer_service.places import free_places, lock_free, lock_soon
from plugins.customer_service.sweeps import UNSYNCHRONISED
from plugins.customer_service.triggers import trigger_assignment

ACTIVE = Chat.state == ChatState.ACTIVE
#: The side that must write next is recorded as the inactive side. Before the first message this is the agent, since the
#: user asked for help by joining the queue.
WHO_WENT_QUIET = case((Chat.last_sender == Side.AGENT, EndReason.USER_INACTIVE), else_=EndReason.AGENT_INACTIVE)
CLOSED_BY = {Side.USER: EndReason.CLOSED_BY_USER, Side.AGENT: EndReason.CLOSED_BY_AGENT}
#: A transaction has an id as soon as it has locked or written a row.
HOLDS_NOTHING = text("SELECT txid_current_if_assigned() IS NULL")
#: The name of the advisory lock that a transaction must hold to end a chat.
RIGHT_TO_END = "customer_service.end_chat"


class Ended(NamedTuple):
    """A chat that has just ended."""

    id: int
    user_id: str
    agent_id: str
    queue_entry_id: int
    end_reason: str | None


def record_message(session: Session, chat_id: int, sender: str, text: str, now: datetime | None = None) -> int:
    """Store a message of ``sender`` ("user" or "agent"), and restart the time-out. Return the message's id.

    If ``now`` is left out, it is the database's time. Raises UnknownChat, ChatEnded or NaiveTime, and ValueError for
    any other sender. No error and no log line contains the text.
    """
    side, sent_at = Side(sender), at(session, now)
    _touch(session, chat_id, side, sent_at)
    message = insert(Message).values(chat_id=chat_id, sender=side, text=text, sent_at=sent_at).returning(Message.id)
    with _text_kept_out_of_errors():
        return session.scalars(message).one()


def end_chat(session: Session, chat_id: int, now: datetime | None = None, *, by: str) -> bool:
    """End the chat because ``by`` ("user" or "agent") closed it. Free the agent's place, and trigger an assignment.

    Returns False, without a change, if the chat had ended already. Also returns False, without waiting, if this
    transaction holds locks and another transaction is ending the chat. If ``now`` is left out, it is the database's
    time. Raises UnknownChat or NaiveTime, and ValueError for any other ``by``.
    """
    reason, ended_at = CLOSED_BY[Side(by)], at(session, now)
    agent_id = _agent_of(session, chat_id)
    with session.begin_nested() as attempt:
        if _lock_chat(session, chat_id, agent_id):
            end_locked(session, [chat_id], ended_at, reason)
            return True
        attempt.rollback()  # also releases the right to end the chat
    return False


def lock_to_end(session: Session, chat_ids: Sequence[int], due: ColumnElement[bool]) -> Sequence[int]:
    """Lock the chats that are ``due``, with their agents and entries. Skip a chat if any of these rows is locked."""
    chats = select(Chat.id, Chat.queue_entry_id, Chat.agent_id, ACTIVE.label("active")).where(
        Chat.id.in_(chat_ids), due
    )
    locked = session.execute(chats.with_for_update(skip_locked=True)).all()
    entries = select(QueueEntry.id).where(QueueEntry.id.in_([chat.queue_entry_id for chat in locked]))
    entry_ids = {*session.scalars(entries.with_for_update(key_share=True, skip_locked=True))}
    agent_ids = lock_free(session, [chat.agent_id for chat in locked if chat.active])
    return [
        chat.id
        for chat in locked
        if chat.queue_entry_id in entry_ids and (chat.agent_id in agent_ids or not chat.active)
    ]


def end_locked(
    session: Session, chat_ids: Sequence[int], now: datetime, reason: ColumnElement[str] | str = WHO_WENT_QUIET
) -> list[Ended]:
    """End active chats whose rows the caller has locked. Free each agent's place once."""
    ended = (
        update(Chat)
        .where(Chat.id.in_(chat_ids), ACTIVE)
        .values(state=ChatState.ENDED, ended_at=now, end_reason=reason)
        .returning(Chat.id, Chat.user_id, Chat.agent_id, Chat.queue_entry_id, Chat.end_reason)
    )
    chats = [Ended(*row) for row in session.execute(ended, execution_options=UNSYNCHRONISED)]
    if chats:
        _mark_served(session, [chat.queue_entry_id for chat in chats])
        free = lock_soon(session, [chat.agent_id for chat in chats])
        free_places(session, [chat.agent_id for chat in chats if chat.agent_id in free])
        trigger_assignment(session)
    return chats


def _agent_of(session: Session, chat_id: int) -> str:
    agent_id = session.scalar(select(Chat.agent_id).where(Chat.id == chat_id))
    if agent_id is None:
        raise UnknownChat(chat_id)
    return agent_id


def _lock_chat(session: Session, chat_id: int, agent_id: str) -> bool:
    """Lock the chat if it is active, and also its agent if that cannot cause a deadlock."""
    right = func.hashtextextended(f"{RIGHT_TO_END}.{chat_id}", 0)
    if session.scalars(HOLDS_NOTHING).one():
        session.execute(select(func.pg_advisory_xact_lock(right)))
        return _lock_both(session, chat_id, agent_id)
    if not session.scalars(select(func.pg_try_advisory_xact_lock(right))).one():
        return False
    return session.scalar(select(Chat.id).where(Chat.id == chat_id, ACTIVE).with_for_update()) is not None


def _lock_both(session: Session, chat_id: int, agent_id: str) -> bool:
    """Lock the chat and its agent. Return False if the chat has ended.

    If one of the two rows is locked by another transaction, unlock the other row while waiting.
    """
    chat = select(Chat.id).where(Chat.id == chat_id, ACTIVE)
    agent = select(Agent.id).where(Agent.id == agent_id)
    while True:
        with session.begin_nested() as attempt:
            if session.scalar(chat.with_for_update()) is None:
                return False
            if session.scalar(agent.with_for_update(key_share=True, skip_locked=True)) is not None:
                return True
            attempt.rollback()
        with session.begin_nested() as attempt:
            session.scalar(agent.with_for_update(key_share=True))
            if session.scalar(chat.with_for_update(skip_locked=True)) is not None:
                return True
            attempt.rollback()


def _mark_served(session: Session, entry_ids: Sequence[int]) -> None:
    served = update(QueueEntry).where(QueueEntry.id.in_(entry_ids)).values(state=EntryState.SERVED)
    session.execute(served, execution_options=UNSYNCHRONISED)


def _touch(session: Session, chat_id: int, sender: Side, now: datetime) -> None:
    # The greatest of the times is stored, since callers may pass older times, and the last activity must not move back.
    touched = session.scalar(
        update(Chat)
        .where(Chat.id == chat_id, ACTIVE)
        .values(last_activity_at=func.greatest(Chat.last_activity_at, now), last_sender=sender, warned_at=null())
        .returning(Chat.id)
        .execution_options(synchronize_session=False)
    )
    if touched is None:
        _agent_of(session, chat_id)
        raise ChatEnded(chat_id)


@contextmanager
def _text_kept_out_of_errors() -> Iterator[None]:
    # By default, SQLAlchemy prints the parameters of a failed statement.
    try:
        yield
    except StatementError as error:
        error.hide_parameters = True
        raise
