"""The stream of events of one browser, as server-sent events."""

import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from core.operations.access import View
from core.web import problems, service
from core.web.api.parameters import Seen
from core.web.callers import Caller
from core.web.live.hub import MOST_LISTENERS, MOST_OF_CALLER, Hub, Listener
from core.web.live.watching import News

router = APIRouter(include_in_schema=False)

#: A comment keeps the connection open at proxies that close idle connections.
COMMENT_SECONDS = 15.0
#: The browser connects again after this time, and shows who it is: a session may have ended.
LIFE_SECONDS = 120.0
#: The milliseconds after which a browser connects again, from 1 to 2 seconds.
RETRY_MS = 1500
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/events")
async def events(request: Request, seen: Seen, caller: Caller) -> Response:
    """Return a stream of what changes in the ledger, as far as the caller may see it."""
    hub = service.of(request).live
    if len(hub) >= MOST_LISTENERS:
        return problems.answer(request.scope, problems.BUSY, f"{len(hub)} browsers listen")
    if hub.number_of(caller.name) >= MOST_OF_CALLER:
        return problems.answer(request.scope, problems.BUSY, f"{MOST_OF_CALLER} browsers of {caller.name} listen")
    return StreamingResponse(told(hub, caller.name, seen), media_type="text/event-stream", headers=HEADERS)


async def told(hub: Hub, name: str, seen: View) -> AsyncIterator[str]:
    """Yield events for the caller ``name`` until the process stops or the stream's life is over."""
    with hub.listening(name) as listener:
        yield f"retry: {RETRY_MS}\nevent: hello\ndata: {{}}\n\n"
        began, is_away = time.monotonic(), False
        while not listener.is_over and time.monotonic() - began < LIFE_SECONDS:
            news = await heard(listener, seen, is_away=is_away)
            if listener.is_away != is_away:
                is_away = listener.is_away
                yield f"event: {'away' if is_away else 'back'}\ndata: {{}}\n\n"
            yield message(news) if news else ":\n\n"


async def heard(listener: Listener, seen: View, *, is_away: bool) -> News:
    """Return the next news that a person may see, or none if it is time for a comment or PostgreSQL goes or is back.

    Other news does not end the wait, so that its time stays hidden.
    """
    until = time.monotonic() + COMMENT_SECONDS
    while listener.is_away == is_away and not listener.is_over and (left := until - time.monotonic()) > 0:
        if news := visible(await listener.wait(left), seen):
            return news
    return News()


def visible(news: News, seen: View) -> News:
    """Return the news that a person may see: of other jobs, not even that there is news."""
    if seen.jobs is None:
        return news
    runs = tuple(run for run in news.runs if seen.shows(run.job))
    topics = news.topics - {"runs", "operations"} | ({"runs"} if runs else set())
    return News(frozenset(topics), runs, news.is_more and bool(runs))


def message(news: News) -> str:
    """Return news as an event."""
    runs = [{"id": run.id, "job": run.job, "state": run.state} for run in news.runs]
    body = {"topics": sorted(news.topics), "runs": runs, "more": news.is_more}
    return f"event: change\ndata: {json.dumps(body, separators=(',', ':'))}\n\n"
