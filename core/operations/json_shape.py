"""The base class of all answers that are given as JSON. Other programs rely on the names and values of the fields."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

#: An instant, written in ISO 8601 with its offset.
Instant = Annotated[datetime, PlainSerializer(datetime.isoformat, when_used="json")]


class Shape(BaseModel):
    """An answer that is given as JSON, with its fields in the order of their declaration."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def jsonable(answer: Shape | Sequence[Shape]) -> Any:
    """Return ``answer`` as a value for ``json.dumps``."""
    if isinstance(answer, Shape):
        return answer.model_dump(mode="json")
    return [jsonable(each) for each in answer]
