"""Chats while they go on, and how each ends exactly once.

Whoever locks a chat's row while it is active ends it, and only they give the agent's place back; everyone else finds it
ended. Rows are locked in the order chat, queue entry, agents (by id).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, insert, null, select, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from plugins.customer_service.agents import free_places
from plugins.customer_service.errors import ChatEnded, UnknownChat
from plugins.customer_service.models import Chat, ChatState, EndReason, EntryState, Message, QueueEntry, Side
from plugins.customer_service.triggers import trigger_assignment

ACTIVE = Chat.state == ChatState.ACTIVE
#: The side that owes the next message went quiet. Before the first message it is the agent: the user has asked for
#: help by joining the queue, so the first word is the agent's.
WHO_WENT_QUIET = case((Chat.last_sender == Side.AGENT, EndReason.USER_INACTIVE), else_=EndReason.AGENT_INACTIVE)
CLOSED_BY = {Side.USER: EndReason.CLOSED_BY_USER, Side.AGENT: EndReason.CLOSED_BY_AGENT}


def record_message(session: Session, chat_id: int, sender: str, text: str, now: datetime) -> int:
    """Store what ``sender`` ("user" or "agent") wrote, and start a new quiet spell; return the message's id.

    Raises UnknownChat or ChatEnded, and ValueError for another sender. The text goes into no error and no log.
    """
    side = Side(sender)
    _touch(session, chat_id, side, now)
    message = insert(Message).values(chat_id=chat_id, sender=side, text=text, sent_at=now).returning(Message.id)
    with _text_kept_out_of_errors():
        return session.scalars(message).one()


def end_chat(session: Session, chat_id: int, now: datetime, *, by: str) -> bool:
    """End the chat because ``by`` ("user" or "agent") closed it, free the agent's place, trigger an assignment.

    False if the chat had ended already: then nothing changes. Raises UnknownChat, and ValueError for another ``by``.
    """
    reason = CLOSED_BY[Side(by)]
    if session.scalar(select(Chat.id).where(Chat.id == chat_id, ACTIVE).with_for_update()) is None:
        _require(session, chat_id)
        return False
    end_locked(session, [chat_id], now, reason)
    return True


def end_locked(session: Session, chat_ids: Sequence[int], now: datetime, reason: ColumnElement[str] | str) -> None:
    """End chats whose rows the caller has locked and found active: each gives its place back, once."""
    ended = (
        update(Chat)
        .where(Chat.id.in_(chat_ids), ACTIVE)
        .values(state=ChatState.ENDED, ended_at=now, end_reason=reason)
        .returning(Chat.queue_entry_id, Chat.agent_id)
        .execution_options(synchronize_session=False)
    )
    rows = session.execute(ended).all()
    _mark_served(session, [row.queue_entry_id for row in rows])
    free_places(session, [row.agent_id for row in rows])
    trigger_assignment(session)


def _mark_served(session: Session, entry_ids: Sequence[int]) -> None:
    session.execute(
        update(QueueEntry)
        .where(QueueEntry.id.in_(entry_ids))
        .values(state=EntryState.SERVED)
        .execution_options(synchronize_session=False)
    )


def _touch(session: Session, chat_id: int, sender: Side, now: datetime) -> None:
    # The greatest, because two hosts' clocks may differ and activity never goes back.
    touched = session.scalar(
        update(Chat)
        .where(Chat.id == chat_id, ACTIVE)
        .values(last_activity_at=func.greatest(Chat.last_activity_at, now), last_sender=sender, warned_at=null())
        .returning(Chat.id)
        .execution_options(synchronize_session=False)
    )
    if touched is None:
        _require(session, chat_id)
        raise ChatEnded(chat_id)


def _require(session: Session, chat_id: int) -> None:
    if session.scalar(select(Chat.id).where(Chat.id == chat_id)) is None:
        raise UnknownChat(chat_id)


@contextmanager
def _text_kept_out_of_errors() -> Iterator[None]:
    # SQLAlchemy prints a failed statement's parameters, unless told not to.
    try:
        yield
    except StatementError as error:
        error.hide_parameters = True
        raise
