"""What forms send. The values are checked by the same models as the bodies of the API."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

MOST_FIELDS = 2000

Sent = Mapping[str, list[str]]
Model = TypeVar("Model", bound=BaseModel)


async def sent(request: Request) -> Sent:
    """Return the fields of a form that are not empty, each with its values. Raises RequestValidationError."""
    body = (await request.body()).decode(errors="replace")
    try:
        return parse_qs(body, max_num_fields=MOST_FIELDS)
    except ValueError:
        said = f"a form has at most {MOST_FIELDS} fields"
        raise RequestValidationError([{"loc": ("body",), "msg": said, "type": "value_error"}]) from None


Form = Annotated[Sent, Depends(sent)]


def first(form: Sent, name: str) -> str | None:
    """Return the first value of a field, or None if it is empty."""
    return form[name][0] if name in form else None


def place(form: Sent) -> str:
    """Return the place to which the browser returns."""
    return first(form, "back") or ""


def checked(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Return the values as ``model``. Values that are None are left out. Raises RequestValidationError."""
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_input=False)]
        raise RequestValidationError(found) from None
