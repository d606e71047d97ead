"""Arguments and results as JSON. They are checked against a job's annotations, and never repeated in an error."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, core_schema, to_json

from core import settings
from core.errors import ArgumentsMisfit, BadArguments, BadProgress, BadResult, DeclarationError, suggestion
from core.jobs.job import Job
from core.jobs.secrets import secret_names

#: The most bytes of JSON that a run's arguments may take. Keep larger data in a table.
LARGEST_ARGUMENTS = 64 * 1024
#: The most bytes of JSON that a result may take. Results are for people to read.
LARGEST_RESULT = 64 * 1024
#: The most levels of lists and dicts in a result. Python's own limits differ, so that 3.11 cannot read all JSON that
#: 3.12 writes.
DEEPEST_RESULT = 200
#: The beginning of a surrogate's escape in JSON. A surrogate without its pair is not a character.
HALF_A_PAIR = "\\ud"
#: The escape of NUL, which PostgreSQL's jsonb cannot hold. A text with an escaped backslash before u0000 is allowed.
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
#: The kinds of pydantic errors whose message may repeat the value.
QUOTING_PROBLEMS = {"value_error", "assertion_error", "union_tag_invalid", "zoneinfo_str"}
SILENT_PROBLEMS = set(get_args(core_schema.ErrorType)) - QUOTING_PROBLEMS

#: The most characters of a default that are shown.
LONGEST_DEFAULT = 200
#: The address of an object in memory. Addresses differ between processes.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

Adapters = dict[str, tuple[TypeAdapter[Any], bool]]


@lru_cache(maxsize=10_000)
def adapters(job: Job) -> Adapters:
    """Return, for each parameter of ``job`` other than ``run``, the adapter that checks it and whether it is required.

    Raises DeclarationError for an annotation that cannot be read from JSON.
    """
    parameters = list(inspect.signature(job.function).parameters.values())[1:]
    try:
        hints = get_type_hints(job.function, include_extras=True)
        return {p.name: (adapter(hints[p.name]), p.default is inspect.Parameter.empty) for p in parameters}
    except Exception as error:
        raise DeclarationError(f"job {job.name!r}: its annotations cannot be used: {error}") from error


def declared(job: Job) -> dict[str, dict[str, str]]:
    """Return, for each argument of ``job``, its type as text, a hash of its JSON schema, and its default if it has one.

    Types that have the same text differ in the hash.
    """
    known = adapters(job)
    parameters = list(inspect.signature(job.function).parameters.values())[1:]
    found = {p.name: _declared(p, known[p.name][0], job.function.__module__) for p in parameters}
    for name in secret_names(job):
        if "default" in found[name]:
            found[name]["default"] = "(hidden)"
    return found


def _declared(parameter: inspect.Parameter, checks: TypeAdapter[Any], module: str) -> dict[str, str]:
    annotation = parameter.annotation
    words = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation, module)
    found = {"type": ADDRESS.sub("", words), "schema": _hash(_schema(checks))}
    if parameter.default is not inspect.Parameter.empty:
        found["default"] = _in_words(parameter.default)
    return found


def _in_words(default: Any) -> str:
    try:
        is_set = isinstance(default, set | frozenset)
        words = f"{{{', '.join(sorted(map(repr, default)))}}}" if is_set else repr(default)
    except Exception:  # noqa: BLE001 — the ``__repr__`` of its class may raise anything
        words = type(default).__name__
    return ADDRESS.sub("", words)[:LONGEST_DEFAULT]


class _Schema(GenerateJsonSchema):
    """Makes JSON schemas. A type that JSON schema cannot describe gets an empty schema."""

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema without the default, since a default may look different in another process."""
        return self.generate_inner(schema["schema"])

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Ignore the warning."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """Accept a type without a JSON schema."""
        return {}


def _schema(checks: TypeAdapter[Any]) -> Any:
    try:
        return checks.json_schema(schema_generator=_Schema)
    except Exception:  # noqa: BLE001 — a type may define its own schema, which may raise anything
        return None


def json_schema(job: Job) -> dict[str, Any]:
    """Return the JSON Schema of the arguments of ``job``, without defaults that are secret."""
    known, secret = adapters(job), secret_names(job)
    parameters = list(inspect.signature(job.function).parameters.values())[1:]
    shared: dict[str, Any] = {}
    properties = {p.name: _property(p, known[p.name][0], shared, is_secret=p.name in secret) for p in parameters}
    required = [name for name, (_, is_required) in known.items() if is_required]
    found = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {**found, "$defs": shared} if shared else found


def _property(
    parameter: inspect.Parameter, checks: TypeAdapter[Any], shared: dict[str, Any], *, is_secret: bool
) -> dict[str, Any]:
    """Return the schema of one argument. Its definitions are added to ``shared``, and their names begin with the
    argument's name.
    """
    try:
        template = f"#/$defs/{parameter.name}.{{model}}"
        found: dict[str, Any] = checks.json_schema(schema_generator=_Schema, ref_template=template)
    except Exception:  # noqa: BLE001 — a type may define its own schema, which may raise anything
        found = {}
    shared.update({f"{parameter.name}.{name}": each for name, each in found.pop("$defs", {}).items()})
    if is_secret:
        return {**found, "writeOnly": True}
    if parameter.default is inspect.Parameter.empty:
        return found
    try:
        return {**found, "default": json.loads(to_json(parameter.default, inf_nan_mode="constants"))}
    except (PydanticSerializationError, ValueError):
        return {**found, "description": f"by default {_in_words(parameter.default)}"}


@lru_cache(maxsize=10_000)
def form(job: Job) -> str:
    """Return a hash of the job's parameters. Declarations with the same form accept the same arguments."""
    checked = {name: [each["type"], each["schema"], "default" in each] for name, each in declared(job).items()}
    return _hash(checked)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return the adapter that checks JSON against ``annotation``. It is strict, so ``"5"`` is not a number."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, hide_input_in_errors=True))
    except Exception:  # noqa: BLE001 — a model has its own configuration, and pydantic refuses a second one
        return TypeAdapter(annotation)


def decode(job: Job, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for ``job``'s function, from JSON values.

    Raises BadArguments, which names each argument that is missing, unknown or of the wrong type.
    """
    known = adapters(job)
    if not args and not known:
        return {}
    problems = [f"{name} is not an argument{suggestion(name, known)}" for name in sorted(set(args) - set(known))]
    problems += [f"{name} is missing" for name, (_, required) in known.items() if required and name not in args]
    decoded = {}
    for name, value in args.items():
        if name in known:
            try:
                decoded[name] = known[name][0].validate_json(_text(value))
            except ValidationError as error:
                problems += _problems(job, name, error)
    if problems:
        raise BadArguments(f"job {job.name!r}: " + "; ".join(problems))
    return decoded


def fits(job: Job, args: Mapping[str, Any]) -> bool:
    """Return whether ``args``, JSON values, fit ``job`` as it is declared here."""
    try:
        decode(job, args)
    except BadArguments:
        return False
    return True


@contextmanager
def judging() -> Iterator[None]:
    """Turn a BadArguments error of the block into ArgumentsMisfit.

    Use this for arguments that came with a message. For arguments from a job's own code, BadArguments is right.
    """
    try:
        yield
    except BadArguments as error:
        raise ArgumentsMisfit(str(error)) from None


def _text(value: Any) -> bytes | str:
    try:
        return to_json(value, inf_nan_mode="constants")
    except PydanticSerializationError:  # the value has half a surrogate pair, and the validation reports this
        return json.dumps(value)


def _problems(job: Job, name: str, error: ValidationError) -> list[str]:
    """Return the problems with one argument.

    For a secret argument, leave out the details, which may contain a part of the argument's value.
    """
    if name in secret_names(job) or name.lower() in settings.redacted():
        return [f"{name}: input is not valid"]
    return [_explain(name, problem) for problem in error.errors(include_input=False)]


def _explain(name: str, problem: Any) -> str:
    place = "".join(f"[{part!r}]" for part in problem["loc"])
    message = problem["msg"] if problem["type"] in SILENT_PROBLEMS else "Input is not valid"
    return f"{name}{place}: {message[0].lower()}{message[1:]}"


def encode(job: Job, args: Mapping[str, Any] | None) -> str:
    """Check that ``args`` fit ``job``, and return them as the JSON text that the ledger stores.

    Raises BadArguments.
    """
    try:
        body = to_json(dict(args or {}), inf_nan_mode="constants")
        decode(job, _strict.decode(body.decode()))
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise BadArguments(f"job {job.name!r}: its arguments cannot be written as JSON: {error}") from None
    _check_body(body, LARGEST_ARGUMENTS, BadArguments, f"job {job.name!r}: its arguments")
    return body.decode()


def encode_result(job: Job, result: Any) -> str | None:
    """Return ``result`` as JSON text, or None if the result is None. Raises BadResult."""
    if result is None:
        return None
    try:
        body = json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
        if body.count(b"[") + body.count(b"{") > DEEPEST_RESULT and _is_deeper(result, DEEPEST_RESULT):
            raise ValueError(f"more than {DEEPEST_RESULT} levels")
    except (TypeError, ValueError, RecursionError) as error:
        hint = "return numbers, strings, lists or dicts"
        raise BadResult(f"job {job.name!r} returned a value that JSON cannot hold ({error}); {hint}") from None
    _check_body(body, LARGEST_RESULT, BadResult, f"the result of job {job.name!r}")
    return body.decode()


def encode_progress(job: str, progress: Mapping[str, Any]) -> str:
    """Return ``progress`` as JSON text. Raises BadProgress, whose message does not repeat the progress."""
    try:
        body = json.dumps(progress, default=str, allow_nan=False)
        if HALF_A_PAIR in body:
            json.dumps(progress, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = error.reason if isinstance(error, UnicodeEncodeError) else error
        raise BadProgress(f"job {job!r}: its progress cannot be written as JSON: {reason}") from None
    if NUL.search(body.encode()):
        raise BadProgress(f"job {job!r}: its progress has a NUL character, which PostgreSQL cannot store")
    return body


def _check_body(body: bytes, largest: int, error: type[Exception], what: str) -> None:
    if len(body) > largest:
        raise error(f"{what}: {len(body)} bytes of JSON, of at most {largest}; keep larger data in a table")
    if NUL.search(body):
        raise error(f"{what}: a NUL character, which PostgreSQL cannot store")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


#: Reads only standard JSON, without NaN and Infinity. ``json.loads`` with the same option would make a decoder for each
#: call.
_strict = json.JSONDecoder(parse_constant=_refuse_constant)


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and dicts in ``value`` are nested more than ``levels`` deep."""
    if not isinstance(value, list | tuple | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
