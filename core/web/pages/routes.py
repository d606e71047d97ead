"""All pages, with one file per noun."""

from fastapi import APIRouter

from core.web.pages import assets, jobs, now, runs

router = APIRouter(include_in_schema=False)
for part in (assets, jobs, now, runs):
    router.include_router(part.router)
