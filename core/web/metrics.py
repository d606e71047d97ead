"""The metrics of this process. They name jobs and queues, so only callers with a token get them."""

from fastapi import APIRouter
from starlette.responses import Response

from core.web.callers import Caller

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def metrics(_caller: Caller) -> Response:
    """Return the metrics as text."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
