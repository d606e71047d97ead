"""The errors of this plugin.

CustomerServiceError       a RotaError
├── UnknownAgent
├── UnknownChat
└── ChatEnded
"""

from core import RotaError


class CustomerServiceError(RotaError):
    """The base class of this plugin's errors. Never contains the text of a message."""


class UnknownAgent(CustomerServiceError):
    """No agent has this id."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"unknown agent {agent_id!r}; register_agent() makes one")


class UnknownChat(CustomerServiceError):
    """No chat has this id: there never was such a chat, or it was archived."""

    def __init__(self, chat_id: int) -> None:
        super().__init__(f"unknown chat {chat_id}; it may have been archived")


class ChatEnded(CustomerServiceError):
    """The chat has ended and takes no more messages."""

    def __init__(self, chat_id: int) -> None:
        super().__init__(f"chat {chat_id} has ended; the user must join the queue again")
