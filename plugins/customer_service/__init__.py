"""Customer service: users wait for an agent and chat; quiet chats are warned and ended, and old chats are archived.

An application calls the functions below with its own session, in its own transaction. The plugin's jobs do the other
work.
"""

from pathlib import Path

from core import Job, hookimpl
from plugins.customer_service import jobs
from plugins.customer_service.agents import agent_offline, agent_online, register_agent, set_capacity
from plugins.customer_service.chats import end_chat, record_message
from plugins.customer_service.errors import ChatEnded, CustomerServiceError, UnknownAgent, UnknownChat
from plugins.customer_service.queue import join_queue, leave_queue

__all__ = [
    "ChatEnded",
    "CustomerService",
    "CustomerServiceError",
    "UnknownAgent",
    "UnknownChat",
    "agent_offline",
    "agent_online",
    "end_chat",
    "join_queue",
    "leave_queue",
    "record_message",
    "register_agent",
    "set_capacity",
]


class CustomerService:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [
            jobs.process_customer_service_queue,
            jobs.auto_end_timeout_chats,
            jobs.send_timeout_warnings,
            jobs.cleanup_long_inactive_chats,
        ]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"
