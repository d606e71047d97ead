"""The API: a file per noun, each with routes that parse, call an operation and answer with its shape."""

from fastapi import APIRouter

from core.web.api import tokens
from core.web.problems import REFUSALS

router = APIRouter(prefix="/api/v1", responses=REFUSALS)
for part in (tokens,):
    router.include_router(part.router)
