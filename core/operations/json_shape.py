"""The base of all answers that are printed as JSON; their names and values are a promise to programs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

#: An instant, as ISO 8601 with its offset.
Instant = Annotated[datetime, PlainSerializer(datetime.isoformat, when_used="json")]


class Shape(BaseModel):
    """An answer as JSON, with its names in order."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def jsonable(answer: Shape | Sequence[Shape]) -> Any:
    """``answer`` as a value for ``json.dumps``."""
    if isinstance(answer, Shape):
        return answer.model_dump(mode="json")
    return [jsonable(each) for each in answer]
