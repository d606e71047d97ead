"""The base of all answers that are printed as JSON. Programs may rely on their names and values."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

#: An instant, written in ISO 8601 with its offset.
Instant = Annotated[datetime, PlainSerializer(datetime.isoformat, when_used="json")]


class Shape(BaseModel):
    """An answer as JSON, with its names in a fixed order."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def jsonable(answer: Shape | Sequence[Shape]) -> Any:
    """Return ``answer`` as a value for ``json.dumps``."""
    if isinstance(answer, Shape):
        return answer.model_dump(mode="json")
    return [jsonable(each) for each in answer]
