"""The form of a job's arguments, made from their JSON Schema, and what such a form sends."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.errors import BadArguments
from core.web.pages import forms
from core.web.pages.forms import Sent

#: The beginning of the names of the fields, so that an argument cannot be mistaken for another field.
PREFIX = "arg."
Kind = Literal["text", "integer", "number", "boolean", "choice", "secret", "json"]
#: The kind of a field for each type of JSON Schema.
KINDS: Mapping[str, Kind] = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form: one argument."""

    name: str
    kind: Kind
    is_required: bool
    #: The values to choose from, as JSON.
    choices: list[str]
    #: The default in words, and the value that the field has at first.
    default: str
    value: str
    said: str

    @property
    def field(self) -> str:
        """The name of the field in the form."""
        return PREFIX + self.name


def fields(schema: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> list[Field]:
    """Return the fields for the arguments of ``schema``. ``given`` are the arguments that they have at first."""
    required = set(schema["required"])
    return [
        field(name, resolved(each, schema), name in required, (given or {}).get(name))
        for name, each in schema["properties"].items()
    ]


def field(name: str, schema: Mapping[str, Any], is_required: bool, given: Any) -> Field:
    """Return the field for one argument."""
    kind = kind_of(schema)
    choices = [as_text("choice", each) for each in schema.get("enum", [])]
    default = json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else ""
    value = "" if given is None or kind == "secret" else as_text(kind, given)
    return Field(name, kind, is_required, choices, default, value, str(schema.get("description", "")))


def resolved(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of an argument without a reference, and without the alternative ``null``."""
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        return {**whole.get("$defs", {}).get(name, {}), **{key: each for key, each in schema.items() if key != "$ref"}}
    kinds = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    if len(kinds) == 1:
        return {**resolved(kinds[0], whole), **{key: each for key, each in schema.items() if key != "anyOf"}}
    return schema


def kind_of(schema: Mapping[str, Any]) -> Kind:
    """Return the kind of field for a schema. A value that no other field can hold is written as JSON."""
    if schema.get("writeOnly"):
        return "secret" if schema.get("type") == "string" else "json"
    if "enum" in schema:
        return "choice"
    return KINDS.get(str(schema.get("type")), "json")


def as_text(kind: Kind, value: Any) -> str:
    """Return a value as it is written in a field."""
    if kind in {"text", "secret"} and isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def read(form: Sent, found: list[Field]) -> dict[str, Any]:
    """Return the arguments that a form sends. An empty field is left out. Raises BadArguments."""
    args: dict[str, Any] = {}
    problems = []
    for each in found:
        text = forms.first(form, each.field)
        if text is None:
            continue
        try:
            args[each.name] = text if each.kind in {"text", "secret"} else json.loads(text)
        except (ValueError, RecursionError):
            expected = "a number" if each.kind in {"integer", "number"} else 'JSON, such as [1, 2] or "text"'
            problems.append(f"{each.name} is not {expected}")
    if problems:
        raise BadArguments("; ".join(problems))
    return args
