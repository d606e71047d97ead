"""``/health`` is for people and monitors; ``/health/live`` is for programs that restart processes."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response

from core.operations.json_shape import Shape
from core.operations.service_health import PATIENCE_SECONDS, Health
from core.web import service

router = APIRouter(tags=["Health"])


class Alive(Shape):
    """This process answers."""

    status: Literal["alive"] = "alive"


@router.get(
    "/health",
    response_model_exclude_none=True,
    responses={503: {"model": Health, "description": "Something is missing; `reasons` says what, and since when."}},
)
async def health(request: Request, response: Response) -> Health:
    """Return whether PostgreSQL, Redis, a worker and a scheduler are available.

    This answers within 2 seconds even if a server hangs. The servers are asked at most a few times a second.
    """
    found = await look(request)
    response.status_code = 200 if found.status == "healthy" else 503
    return found


async def look(request: Request) -> Health:
    """Return the health as far as the servers answer in time."""
    watch = service.of(request).watch
    await asyncio.wait([asyncio.wrap_future(asked) for asked in watch.ask()], timeout=PATIENCE_SECONDS)
    return watch.health()


@router.get("/health/live")
async def live() -> Alive:
    """Answer that this process works, without asking a server.

    For load balancers, and for programs that restart processes.
    """
    return Alive()
