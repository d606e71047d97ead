"""Makes and reads messages, and recognises bodies on a queue that are not messages of ours."""

import os
from typing import Any

from dramatiq.message import Message

from core.ledger.carrier import OutgoingMessage, OutgoingRun

#: The option of a message that carries a run of the ledger.
RUN_ID = "run_id"
#: The option of a run's message with its priority, if that is not 0.
PRIORITY = "priority"
#: The option of a message of the fast lane with the forms of its job that its arguments do not fit.
REFUSED_BY = "refused_by"
#: The largest id that a row can have, PostgreSQL's ``bigint``.
LARGEST_ID = 2**63 - 1
#: The option that holds a message's id in Redis. A message without it did not come through Redis.
REDIS_ID = "redis_message_id"


class NotAMessage(Exception):
    """A body on a queue is not a message of ours; the text briefly says why."""


def new_id() -> str:
    """A unique id: as random as Dramatiq's ``uuid4``, and made in a fifth of the time."""
    return os.urandom(16).hex()


def run_message(run: OutgoingRun) -> Message[Any]:
    """The message of a run, which has the run's id, its priority if it has one, and nothing else."""
    options = {RUN_ID: run.run_id, PRIORITY: run.priority} if run.priority else {RUN_ID: run.run_id}
    return Message(run.queue, run.job, args=(), kwargs={}, options=options, message_id=new_id())


def fast_message(outgoing: OutgoingMessage) -> Message[Any]:
    """A message of the fast lane."""
    return Message(outgoing.queue, outgoing.job, args=(), kwargs=outgoing.args, options={}, message_id=new_id())


def read(body: bytes | None, queue_name: str) -> Message[Any]:
    """The message in ``body``, found on ``queue_name``. Raises NotAMessage."""
    if body is None:
        raise NotAMessage("no body")
    try:
        message = Message.decode(body)
    except Exception:  # noqa: BLE001 — a queue may contain any bytes
        raise NotAMessage("corrupt") from None
    if not is_well_formed(message) or message.queue_name != queue_name:
        raise NotAMessage("not ours")
    return message


def is_well_formed(message: Message[Any]) -> bool:
    """Whether the fields that Dramatiq's threads read have the right types."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.message_id, str)
        and isinstance(message.args, list | tuple)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and isinstance(message.options.get("redis_message_id"), str)
        and (RUN_ID not in message.options or is_run_id(message.options[RUN_ID]))
        and (REFUSED_BY not in message.options or are_forms(message.options[REFUSED_BY]))
        and "throws" not in message.options  # it has exception types, which are not JSON; a thread would end
    )


def are_forms(value: object) -> bool:
    """Whether ``value`` can be the forms that have refused a message."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def is_run_id(value: object) -> bool:
    """Whether ``value`` can be the id of a run; JSON also has larger numbers, fractions, true and false."""
    return type(value) is int and 0 < value <= LARGEST_ID


def run_id(body: bytes | None, queue_name: str) -> int | None:
    """The run of the message in ``body``, if it is a message of a ledger's run."""
    try:
        value: int | None = read(body, queue_name).options.get(RUN_ID)
    except NotAMessage:
        return None
    return value
