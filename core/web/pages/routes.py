"""All pages, with one file per noun."""

from fastapi import APIRouter

from core.web.pages import (
    assets,
    failures,
    find,
    jobs,
    now,
    orphans,
    pauses,
    plans,
    runs,
    schedules,
    service,
    tokens,
    why,
)

router = APIRouter(include_in_schema=False)
for part in (assets, now, schedules, runs, failures, jobs, service, why, pauses, orphans, plans, tokens, find):
    router.include_router(part.router)
