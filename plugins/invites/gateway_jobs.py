"""The jobs that talk to the gateway, with their schedules, their retries and their limits."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from core import Job, JobDefaults, Limit, Run, every
from plugins.invites import orphans, processing, reconciliation
from plugins.invites.gateway import Gateway
from plugins.invites.gateway.current import current_gateway
from plugins.invites.orphans import DETECT
from plugins.invites.processing import RECONCILE, TEAM_LIMIT
from plugins.invites.requests import PROCESS
from plugins.invites.settings import InvitesSettings

GATEWAY_LIMIT = "invites:gateway"
#: A request takes at most two exchanges with the gateway, and a listing one for each page.
job = JobDefaults(queue="invites", soft_limit=timedelta(minutes=15), hard_limit=timedelta(minutes=16))


@job(
    PROCESS,
    overlap="wait",
    max_retries=5,
    retry_delay=timedelta(seconds=10),
    backoff="exponential",
    longest_delay=timedelta(minutes=5),
    jitter=True,
)
def process_invite(run: Run, request_id: UUID, team_id: int) -> dict[str, Any]:
    """Send a request to the gateway, which invites or removes one person, and record its outcome."""
    return processing.process(run, request_id, current_gateway())


@job(RECONCILE, schedule=every(minutes=15), overlap="wait", max_retries=2)
def reconcile_invites(run: Run, team_id: int | None = None, seat_id: int | None = None) -> dict[str, Any]:
    """Compare teams with their members at the gateway, and correct what is wrong here."""
    gateway = configured()
    if gateway is None:
        return {"skipped": "ROTA_INVITES_GATEWAY is not set"}
    if team_id is None:
        return reconciliation.request_all(run)
    if seat_id is None:
        return reconciliation.reconcile(run, team_id, gateway)
    return reconciliation.reconcile_seat(run, team_id, seat_id, gateway)


@job(DETECT, schedule=every(hours=1), overlap="wait", max_retries=2)
def detect_orphan_users(run: Run, team_id: int | None = None, orphan_id: int | None = None) -> dict[str, Any]:
    """Find members at the gateway that no record explains, and report them."""
    gateway = configured()
    if gateway is None:
        return {"skipped": "ROTA_INVITES_GATEWAY is not set"}
    if team_id is None:
        return orphans.detect_all(run)
    if orphan_id is None:
        return orphans.detect(run, team_id, gateway)
    return orphans.remove_one(run, team_id, orphan_id, gateway)


def configured() -> Gateway | None:
    """Return the gateway of the settings, or None if they name none. Raises BadGateway if it cannot be used."""
    return current_gateway() if InvitesSettings.current().gateway is not None else None


def limited_jobs(settings: InvitesSettings) -> list[Job]:
    """Return the jobs, with the limits of ``settings``. They are for the gateway, and for each team."""
    limits = (
        Limit(GATEWAY_LIMIT, at_once=settings.gateway_requests),
        Limit(TEAM_LIMIT, at_once=settings.team_requests),
    )
    return [replace(each, limits=limits) for each in (process_invite, reconcile_invites, detect_orphan_users)]
