"""The old addresses for cleaning up Redis. They make a plan first, and carry it out when it is confirmed."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from sqlalchemy.orm import Session

from core.operations import plans
from core.operations.plans import Operation
from core.web import service
from core.web.api.ledger import Jobs, Ledger
from core.web.api.parameters import Body, Words
from core.web.callers import Caller
from core.web.legacy import instead
from core.web.problems import REFUSALS

router = APIRouter(
    prefix="/api/v1/cache/cleanup",
    tags=["Old addresses"],
    deprecated=True,
    responses=REFUSALS,
    dependencies=[Depends(instead("/plans"))],
)


class Confirmed(Body):
    """The digest of the plan, and the phrase that it asks for, if any. Without a digest, a plan is made."""

    confirm: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    phrase: Words | None = None


class CleanUp:
    """A clean-up by the caller, which must be confirmed."""

    def __init__(self, request: Request, engine: Ledger, registry: Jobs, caller: Caller) -> None:
        self._configured = service.of(request).configured
        self._engine = engine
        self._registry = registry
        self._caller = caller

    def do(self, sent: Confirmed | None, *, is_full: bool) -> Operation:
        """Confirm the plan whose digest was sent. Without such a plan, make one, and raise ConfirmationRequired with
        it.
        """
        given = (sent or Confirmed()).model_dump()
        with Session(self._engine) as session:
            return plans.clean_up(session, self._registry, self._configured, self._caller, is_full=is_full, **given)


@router.post("/orphaned-tasks", status_code=202)
def of_orphans(by: Annotated[CleanUp, Depends()], sent: Confirmed | None = None) -> Operation:
    """Remove old messages and results of no use from Redis. Call `POST /api/v1/plans` instead.

    Without `confirm`, the answer is a 409 with the plan, which changes nothing.
    """
    return by.do(sent, is_full=False)


@router.post("/full", status_code=202)
def of_all(by: Annotated[CleanUp, Depends()], sent: Confirmed | None = None) -> Operation:
    """Remove old messages and results of no use, and old dead letters, from Redis. Call `POST /api/v1/plans` instead.
    For admins.

    Without `confirm` and `phrase`, the answer is a 409 with the plan, which changes nothing.
    """
    return by.do(sent, is_full=True)
