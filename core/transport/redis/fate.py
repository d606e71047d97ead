"""Decides about messages whose job this process does not have. The same rule applies to a single message and to the
messages of an abandoned queue.
"""

from enum import StrEnum
from typing import Any

from dramatiq.message import Message

from core.ledger.releases import Fleet
from core.transport.messages import RUN_ID


class Fate(StrEnum):
    """The decision about a message."""

    #: A live process has the message's job, or may have it: requeue the message.
    SERVED = "served"
    #: No live process has the message's job. The ledger has the run, and sends it again if the job returns.
    DROPPED = "dropped"
    #: No live process has the message's job, and the ledger has no run for the message.
    ORPHANED = "orphaned"


def fate(message: Message[Any], fleet: Fleet) -> Fate:
    """Decide about ``message`` by the jobs of ``fleet``."""
    if fleet.knows(message.actor_name):
        return Fate.SERVED
    return Fate.DROPPED if RUN_ID in message.options else Fate.ORPHANED
