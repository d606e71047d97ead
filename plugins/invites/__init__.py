"""Invites: gives the seats of teams to people, in order and never twice, and invites these people through a gateway.

An application calls the functions below with its own session, in its own transaction. The plugin's jobs do the other
work.
"""

from pathlib import Path

from core import Command, Job, PluginSettings, Route, hookimpl
from plugins.invites import jobs
from plugins.invites.addresses import normalize
from plugins.invites.asking import Answer, leave_waiting
from plugins.invites.batches import Report, invite_many, preview
from plugins.invites.codes import Redeemed, add_code, redeem
from plugins.invites.counters import count_redemption
from plugins.invites.errors import (
    AlreadyThere,
    BadAddress,
    BadValue,
    CodeRefused,
    InvitesError,
    MoveUnderWay,
    SeatsTaken,
    TeamClosed,
    TeamFull,
    TeamTaken,
    UnknownMember,
    UnknownTeam,
)
from plugins.invites.gateway_jobs import limited_jobs
from plugins.invites.members import extend, remove_member
from plugins.invites.moves import cancel_move, move_member
from plugins.invites.orphans import UnknownOrphan, keep_orphan, list_orphans, remove_orphan
from plugins.invites.settings import InvitesSettings
from plugins.invites.teams import add_team, close_team, open_team, set_seats
from plugins.invites.webhooks import BadWebhook, record_webhook

__all__ = [
    "AlreadyThere",
    "Answer",
    "BadAddress",
    "BadValue",
    "BadWebhook",
    "CodeRefused",
    "Invites",
    "InvitesError",
    "MoveUnderWay",
    "Redeemed",
    "Report",
    "SeatsTaken",
    "TeamClosed",
    "TeamFull",
    "TeamTaken",
    "UnknownMember",
    "UnknownOrphan",
    "UnknownTeam",
    "add_code",
    "add_team",
    "cancel_move",
    "close_team",
    "count_redemption",
    "extend",
    "invite_many",
    "keep_orphan",
    "leave_waiting",
    "list_orphans",
    "move_member",
    "normalize",
    "open_team",
    "preview",
    "record_webhook",
    "redeem",
    "remove_member",
    "remove_orphan",
    "set_seats",
]


class Invites:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [
            jobs.consume_waiting_queue,
            jobs.cleanup_expired_users,
            jobs.sync_redemption_counts,
            *limited_jobs(InvitesSettings.current()),
        ]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_commands(self) -> list[Command]:
        about = "List and change teams with their seats, and the people who wait for one."
        return [Command("invites", "plugins.invites.commands:invites", about)]

    @hookimpl
    def register_routes(self) -> list[Route]:
        return [
            Route("GET", "/teams", "plugins.invites.routes:list_teams", "viewer", "Teams"),
            Route("GET", "/teams/{name}", "plugins.invites.routes:list_seats", "viewer", "Seats"),
            Route("POST", "/teams/{name}/seats", "plugins.invites.routes:set_seats", "operator"),
            Route("POST", "/teams/{name}/remove", "plugins.invites.routes:remove", "operator"),
            Route("POST", "/teams/{name}/move", "plugins.invites.routes:move", "operator"),
            Route("POST", "/teams/{name}/cancel-move", "plugins.invites.routes:cancel_move", "operator"),
            Route("GET", "/waiting", "plugins.invites.routes:list_waiting", "viewer", "Waiting list"),
            Route(
                "GET",
                "/requests/unknown",
                "plugins.invites.routes:list_unknown",
                "viewer",
                "Requests of unknown outcome",
            ),
            Route("GET", "/orphans", "plugins.invites.routes:list_orphans", "viewer", "Orphans"),
            Route("POST", "/orphans/{orphan}/keep", "plugins.invites.routes:keep_orphan", "operator"),
            Route("POST", "/orphans/{orphan}/remove", "plugins.invites.routes:remove_orphan", "operator"),
            Route("POST", "/batches/preview", "plugins.invites.routes:preview", "operator"),
            Route("POST", "/batches", "plugins.invites.routes:import_list", "operator"),
        ]

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return InvitesSettings
