"""The API, with one file per noun. Each route parses the request, calls an operation and answers with its result."""

from fastapi import APIRouter

from core.web.api import exports, jobs, orphans, pauses, plans, runs, schedules, service, sessions, tokens
from core.web.problems import REFUSALS

router = APIRouter(prefix="/api/v1", responses=REFUSALS)
for part in (exports, runs, jobs, schedules, service, pauses, orphans, plans, tokens, sessions):
    router.include_router(part.router)
