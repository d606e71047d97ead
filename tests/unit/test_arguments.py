"""Arguments and results as JSON: which values fit a job's annotations, and that errors do not contain values."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from core import Run, job
from core.errors import BadArguments, BadResult, DeclarationError
from core.jobs import arguments
from core.jobs.job import Job

SECRET = "hunter2"
SOME_ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Address(BaseModel):
    street: str
    number: int = 1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    number: int


@dataclass
class Point:
    x: int
    y: int


class Opinionated(BaseModel):
    """An argument whose validator puts the value into its error."""

    street: str

    @field_validator("street")
    @classmethod
    def _refuse(cls, street: str) -> str:
        raise ValueError(f"{street} is no street")


class Circle(BaseModel):
    shape: Literal["circle"]


class Square(BaseModel):
    shape: Literal["square"]


class Colour(Enum):
    RED = "red"


def taking(annotation: Any) -> Job:
    """Return a job with one required argument, ``value``."""

    def work(run: Run, value: Any) -> None: ...

    work.__annotations__["value"] = annotation
    return job("work")(work)


@job("close-day")
def close_day(run: Run, region: str, day: date, *, limit: int = 100, force: bool = False) -> None: ...


@job("no-arguments")
def no_arguments(run: Run) -> None: ...


def refusal(job: Job, args: Any) -> str:
    """Return the error of ``encode``, and check that it contains no value."""
    with pytest.raises(BadArguments) as caught:
        arguments.encode(job, args)
    message = str(caught.value)
    assert message.startswith(f"job {job.name!r}: ")
    assert SECRET not in message
    return message


# Values that fit

RIGHT = [
    (int, 5),
    (float, 1),
    (float, 1.5),
    (bool, True),
    (str, "München \U0001f600"),
    (str, ""),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (dict[str, int], {"a": 1}),
    (dict, {"a": [1, None, {"b": 2.5}]}),
    (Any, [1, "a", None]),
    (datetime, NOON),
    (date, NOON.date()),
    (timedelta, timedelta(minutes=90)),
    (UUID, SOME_ID),
    (Decimal, Decimal("1.10")),
    (int | None, None),
    (int | None, 5),
    (int | str, "five"),
    (Literal["low", "high"], "low"),
    (Colour, Colour.RED),
    (Address, Address(street="Main")),
    (list[Address], [Address(street="Main", number=2)]),
    (Address | None, None),
    (Strict, Strict(number=1)),
    (Point, Point(1, 2)),
    (Annotated[int, Field(gt=0)], 1),
    (Annotated[Circle | Square, Field(discriminator="shape")], Square(shape="square")),
    (IPv4Address, IPv4Address("127.0.0.1")),
]


@pytest.mark.parametrize(("annotation", "value"), RIGHT, ids=[f"{a}-{v}"[:60] for a, v in RIGHT])
def test_a_value_of_the_right_type_comes_back_as_it_was(annotation, value):
    found = taking(annotation)

    body = arguments.encode(found, {"value": value})

    assert arguments.decode(found, json.loads(body)) == {"value": value}


@given(st.dictionaries(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.integers(-(2**60), 2**60)))
def test_any_text_but_nul_comes_back_as_it_was(value):
    found = taking(dict[str, int])

    assert arguments.decode(found, json.loads(arguments.encode(found, {"value": value}))) == {"value": value}


def test_arguments_with_defaults_may_be_left_out():
    body = arguments.encode(close_day, {"region": "uk", "day": date(2026, 3, 1)})

    assert arguments.decode(close_day, json.loads(body)) == {"region": "uk", "day": date(2026, 3, 1)}


@pytest.mark.parametrize("args", [None, {}])
def test_no_arguments_are_an_empty_object(args):
    assert arguments.encode(no_arguments, args) == "{}"


def test_a_backslash_before_u0000_is_not_nul():
    found = taking(str)

    body = arguments.encode(found, {"value": r"C:\u0000"})

    assert arguments.decode(found, json.loads(body)) == {"value": r"C:\u0000"}


# Values that do not fit

WRONG = [
    (int, SECRET),
    (int, "5"),
    (int, 5.5),
    (int, True),
    (int, None),
    (int, [5]),
    (float, SECRET),
    (bool, 1),
    (bool, "true"),
    (str, 5),
    (str, None),
    (list[int], [1, SECRET]),
    (list[int], SECRET),
    (dict[str, int], {"a": SECRET}),
    (datetime, SECRET),
    (date, SECRET),
    (UUID, SECRET),
    (Decimal, SECRET),
    (int | None, SECRET),
    (Literal["low", "high"], SECRET),
    (Colour, SECRET),
    (Address, {"street": 5}),
    (Address, {"number": 5}),
    (Address, SECRET),
    (Strict, {"number": SECRET}),
    (Strict, {"number": 1, "more": SECRET}),
    (Point, {"x": SECRET, "y": 2}),
    (Annotated[int, Field(gt=0)], 0),
    (Annotated[str, Field(max_length=3)], SECRET),
    (Annotated[Circle | Square, Field(discriminator="shape")], {"shape": SECRET}),
    (Opinionated, {"street": SECRET}),
    (IPv4Address, SECRET),
    (ZoneInfo, SECRET),
]


@pytest.mark.parametrize(("annotation", "value"), WRONG, ids=[f"{a}-{v}"[:60] for a, v in WRONG])
def test_a_value_of_the_wrong_type_is_refused_with_its_argument_and_without_itself(annotation, value):
    assert "job 'work': value" in refusal(taking(annotation), {"value": value})


def test_the_place_within_a_value_is_named():
    assert "value[1]: input should be a valid integer" in refusal(taking(list[int]), {"value": [1, SECRET]})
    assert "value['street']: " in refusal(taking(Address), {"value": {"street": 5}})


def test_everything_wrong_with_the_arguments_is_said_at_once():
    message = refusal(close_day, {"regoin": SECRET, "limit": SECRET, "force": SECRET})

    for part in ("regoin is not an argument; did you mean 'region'?", "region is missing", "day is missing"):
        assert part in message
    assert "limit: input should be a valid integer" in message
    assert "force: input should be a valid boolean" in message


def test_an_unknown_argument_with_nothing_near_gets_no_suggestion():
    assert refusal(no_arguments, {"zzz": SECRET}) == "job 'no-arguments': zzz is not an argument"


def test_the_run_itself_is_not_an_argument():
    assert "run is not an argument" in refusal(no_arguments, {"run": 5})


def test_names_that_are_not_strings_are_unknown():
    assert "5 is not an argument" in refusal(no_arguments, {5: SECRET})


@pytest.mark.parametrize("args", [[SECRET], SECRET, 5, [1, 2]], ids=str)
def test_arguments_that_are_not_a_mapping_are_refused(args):
    assert "its arguments cannot be written as JSON" in refusal(no_arguments, args)


def endless() -> list[Any]:
    """Return a list that contains itself."""
    found: list[Any] = [SECRET]
    found.append(found)
    return found


def deep(levels: int) -> Any:
    found: Any = SECRET
    for _ in range(levels):
        found = [found]
    return found


class Unheard:
    def __repr__(self) -> str:
        return SECRET


UNWRITABLE = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity in a list": [1, -float("inf")],
    "an object": Unheard(),
    "a set of objects": {Unheard()},
    "bytes that are no text": b"\xff" + SECRET.encode(),
    "a lone surrogate": SECRET + "\ud800",
    "a list that contains itself": endless(),
    "a list 1,000 deep": deep(1_000),
    "a list 100,000 deep": deep(100_000),
    "NUL": SECRET + "\0",
    "NUL after a backslash": SECRET + "\\\0",
    "NUL in a key": {"\0": SECRET},
    "too much": SECRET * arguments.LARGEST_ARGUMENTS,
}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_the_ledger_cannot_hold_is_refused_as_an_argument(value):
    refusal(taking(Any), {"value": value})


def test_the_deepest_result_fits_and_no_deeper_one():
    deepest = deep(arguments.DEEPEST_RESULT)
    job = taking(Any)

    assert json.loads(str(arguments.encode_result(job, deepest))) == deepest
    assert arguments.encode_result(job, [{}] * 2 * arguments.DEEPEST_RESULT)
    for deeper in ([deepest], {"a": deepest}, (deepest,)):
        with pytest.raises(BadResult, match=f"more than {arguments.DEEPEST_RESULT} levels"):
            arguments.encode_result(job, deeper)


def test_arguments_that_are_too_large_are_told_the_limit_and_the_way_out():
    message = refusal(taking(str), {"value": "x" * arguments.LARGEST_ARGUMENTS})

    assert f"of at most {arguments.LARGEST_ARGUMENTS}; keep larger data in a table" in message


def test_the_largest_arguments_fit():
    room = arguments.LARGEST_ARGUMENTS - len('{"value":""}')

    assert len(arguments.encode(taking(str), {"value": "x" * room})) == arguments.LARGEST_ARGUMENTS


# Annotations


def test_an_annotation_that_cannot_be_resolved_is_refused_when_declared():
    with pytest.raises(
        DeclarationError, match="job 'work': its annotations cannot be used: name 'Region' is not defin"
    ):
        arguments.adapters(taking("Region"))


def test_an_annotation_that_json_cannot_be_checked_against_is_refused_when_declared():
    with pytest.raises(DeclarationError, match="job 'work': its annotations cannot be used: Unable to generate"):
        arguments.adapters(taking(Unheard))


def test_annotations_written_as_strings_are_resolved():
    assert arguments.decode(taking("list[int]"), {"value": [1]}) == {"value": [1]}


# Results


@pytest.mark.parametrize(
    "result", [0, 1.5, "", "München", True, [], {}, {"closed": 3}, [1, None], (1, 2), {"a": {"b": [1]}}, r"C:\u0000"]
)
def test_a_result_is_kept_as_json(result):
    body = arguments.encode_result(no_arguments, result)

    assert json.loads(str(body)) == (list(result) if isinstance(result, tuple) else result)


def test_no_result_is_none():
    assert arguments.encode_result(no_arguments, None) is None


@pytest.mark.parametrize(
    "result",
    [*UNWRITABLE.values(), NOON, SOME_ID, Decimal("1"), {1, 2}, b"bytes", {(1, 2): 3}, (n for n in [1])],
    ids=[*UNWRITABLE, "datetime", "UUID", "Decimal", "set", "bytes", "a tuple for a key", "a generator"],
)
def test_what_json_or_the_ledger_cannot_hold_is_refused_as_a_result(result):
    with pytest.raises(BadResult) as caught:
        arguments.encode_result(no_arguments, result)

    assert "'no-arguments'" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_result_that_is_refused_says_what_may_be_returned():
    with pytest.raises(BadResult, match="return numbers, strings, lists or dicts"):
        arguments.encode_result(no_arguments, NOON)


class Shelf(BaseModel):
    books: int


class OtherShelf(BaseModel):
    books: str


OtherShelf.__name__ = OtherShelf.__qualname__ = "Shelf"


class Reader(BaseModel):
    shelves: set[int] = {0, 8}


class OtherReader(BaseModel):
    shelves: set[int] = {8, 0}


OtherReader.__name__ = OtherReader.__qualname__ = "Reader"


class Unspoken:
    """A class without a JSON form, whose objects cannot be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def declared_with(annotation: Any, *default: Any) -> Job:
    def function(run: Run, n: Any) -> None:
        pass

    function.__annotations__["n"] = annotation
    function.__defaults__ = default
    return job("work")(function)


class TestForms:
    """Two declarations of a job have different forms if one of them may refuse arguments that fit the other."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (declared_with(int), declared_with(str)),
            (declared_with(int), declared_with(int, 1)),
            (declared_with(Annotated[int, Field(gt=0)]), declared_with(Annotated[int, Field(gt=1)])),
            (declared_with(Shelf), declared_with(OtherShelf)),
        ],
        ids=["type", "a default", "a rule", "a model's field"],
    )
    def test_declarations_that_check_otherwise_are_of_two_forms(self, one, other):
        assert arguments.form(one) != arguments.form(other)

    def test_another_default_is_the_same_form(self):
        assert arguments.form(declared_with(int, 1)) == arguments.form(declared_with(int, 2))

    def test_arguments_are_told_as_they_are_declared(self):
        told = arguments.declared(declared_with(str | None, "uk"))["n"]

        assert (told["type"], told["default"]) == ("str | None", "'uk'")

    def test_a_default_is_told_the_same_in_every_process(self):
        assert str({0, 8}) != str({8, 0})
        assert arguments.declared(declared_with(set[int], {0, 8})) == arguments.declared(
            declared_with(set[int], {8, 0})
        )
        assert arguments.form(declared_with(Reader)) == arguments.form(declared_with(OtherReader))
        assert "0x" not in arguments.declared(declared_with(Any, object()))["n"]["default"]
        assert arguments.declared(declared_with(Any, Unspoken()))["n"]["default"] == "Unspoken"
        assert len(arguments.declared(declared_with(str, "x" * 1000))["n"]["default"]) == arguments.LONGEST_DEFAULT
