"""The jobs, with their queue, schedules and retries."""

from datetime import timedelta

from core import JobDefaults, Run, every
from rota_uptime import sites
from rota_uptime.settings import UptimeSettings

job = JobDefaults(queue="uptime")


@job("uptime-probe-all", schedule=every(minutes=1), misfire="skip")
def probe_all(run: Run) -> dict[str, int]:
    """Request a run for each site, which probes it."""
    watched = sites.watched(run.session)
    for site in watched:
        run.enqueue("uptime-probe", key=str(site.id), args={"site_id": site.id, "url": site.url})
    return {"sites": len(watched)}


@job("uptime-probe", max_retries=0, soft_limit=timedelta(minutes=1))
def probe(run: Run, site_id: int, url: str) -> dict[str, bool]:
    """Ask one site whether it is up, and record a change."""
    # Before the session is used, so that no transaction is open while we wait for another server.
    is_up = sites.answers(url, UptimeSettings.current().timeout_seconds)
    return {"is_up": is_up, "changed": sites.record(run.session, site_id, is_up, run.now)}
