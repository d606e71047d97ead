"""Expiry: cancels tasks whose deadline has passed, and expires coupons, invitation codes and points at their end.

An application calls the functions below with its own session, in its own transaction. The plugin's jobs do the other
work.
"""

from pathlib import Path

from core import Job, hookimpl
from plugins.expiry import jobs
from plugins.expiry.coupons import issue_coupon, redeem_coupon
from plugins.expiry.errors import (
    BadInstant,
    BadPoints,
    BadReference,
    CodeTaken,
    ExpiryError,
    InsufficientPoints,
    ReferenceTaken,
    UnknownTask,
)
from plugins.expiry.invitation_codes import issue_invitation_code, use_invitation_code
from plugins.expiry.points import grant_points, spend_points, spendable_points
from plugins.expiry.tasks import cancel_task, complete_task, open_task

__all__ = [
    "BadInstant",
    "BadPoints",
    "BadReference",
    "CodeTaken",
    "Expiry",
    "ExpiryError",
    "InsufficientPoints",
    "ReferenceTaken",
    "UnknownTask",
    "cancel_task",
    "complete_task",
    "grant_points",
    "issue_coupon",
    "issue_invitation_code",
    "open_task",
    "redeem_coupon",
    "spend_points",
    "spendable_points",
    "use_invitation_code",
]


class Expiry:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [
            jobs.cancel_expired_tasks,
            jobs.check_expired_coupons,
            jobs.check_expired_invitation_codes,
            jobs.check_expired_points,
        ]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"
