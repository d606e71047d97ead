"""Customer service: users queue for an agent, chat, are warned when it goes quiet, and are archived in the end.

An application calls the functions below with a session of its own, in its own transaction; the jobs do the rest.
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
    """What this plugin offers to Rota."""

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
