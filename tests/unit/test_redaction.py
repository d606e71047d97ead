"""Secrets: hidden by name in JSON and by value in texts; and refused declarations of secrets."""

import json
import logging
from typing import Annotated

import pytest
from dramatiq.message import Message
from pydantic import BaseModel

from core import Secret, job
from core.errors import BadArguments, DeclarationError
from core.jobs import arguments
from core.jobs.secrets import secret_names
from core.ledger import releases
from core.observability import lines, logs, redaction
from core.observability.redaction import HIDDEN
from core.plugins.loading import checked
from core.testing import registry_of


class Login(BaseModel):
    user: str


@job("mail")
def mail(
    run,
    to: str,
    token: Annotated[str, Secret] = "default-token",
    login: Annotated[Login, Secret] | None = None,
    pins: list[Annotated[int, Secret]] = [],  # noqa: B006 — never changed
):
    pass


@job("fast", ledger=False)
def fast(run, token: Annotated[str, Secret]):
    pass


@pytest.fixture
def formatted():
    """Format a record as a worker's log does."""

    def formatted(record):
        logs.hide_arguments(record)
        return json.loads(logs.formatter("json").format(record))

    return formatted


def record(message, *args, **options):
    return logging.LogRecord(options.pop("name", "anything"), logging.INFO, __file__, 1, message, args, **options)


def with_error(error):
    try:
        raise error
    except type(error) as raised:
        return (type(raised), raised, raised.__traceback__)


class TestDeclaration:
    def test_a_parameter_is_secret_wherever_the_mark_stands_in_its_annotation(self):
        assert secret_names(mail) == {"token", "login", "pins"}

    def test_the_release_has_the_names_but_no_default(self):
        described = releases.of(registry_of(mail)).jobs["mail"]

        assert described["secrets"] == ["login", "pins", "token"]
        assert described["arguments"]["token"]["default"] == HIDDEN
        assert "default-token" not in json.dumps(described)

    def test_the_fast_lane_is_refused_since_redis_keeps_its_arguments(self):
        with pytest.raises(DeclarationError, match="job 'fast': token cannot be Secret, since ledger=False"):
            checked([fast])


class TestArguments:
    """The error of an argument names a place in the argument, and a key of a dict may be a secret."""

    @job("keys")
    def keys(run, codes: Annotated[dict[str, int], Secret], open_codes: dict[str, int] = {}):  # noqa: B006 — not changed
        pass

    def test_a_refused_secret_is_named_without_details(self):
        with pytest.raises(BadArguments) as refused:
            arguments.encode(self.keys, {"codes": {"hunter2-hunter2": "x"}, "open_codes": {"seen": "x"}})

        assert "codes: input is not valid" in str(refused.value)
        assert "open_codes['seen']: input should be a valid integer" in str(refused.value)
        assert "hunter2" not in str(refused.value)

    def test_so_is_one_that_the_setting_names(self, monkeypatch):
        monkeypatch.setenv("ROTA_REDACT", "open_codes")
        with pytest.raises(BadArguments, match="open_codes: input is not valid"):
            arguments.encode(self.keys, {"codes": {}, "open_codes": {"hunter2-hunter2": "x"}})


class TestByName:
    def test_a_name_is_hidden_at_any_depth_in_any_case(self):
        shown = redaction.named({"a": [{"Password": "x", "b": {"PASSWORD": {"c": 1}}}], "password": None}, {"password"})

        assert shown == {"a": [{"Password": HIDDEN, "b": {"PASSWORD": HIDDEN}}], "password": HIDDEN}

    def test_the_setting_names_arguments_with_commas(self, monkeypatch):
        monkeypatch.setenv("ROTA_REDACT", " Password, token ,")

        assert redaction.redacted() == {"password", "token"}


class TestByValue:
    def test_each_value_within_a_secret_argument_is_found_in_the_forms_it_is_written_in(self):
        args = {"login": {"user": 'a"b\né?', "pin": 12345, "ok": True, "none": None}, "to": "open"}

        secrets = redaction.texts(args, {"login"})

        for text in ('a"b\né?', json.dumps('a"b\né?'), repr('a"b\né?'), "url=a%22b%0A%C3%A9%3F", "pin 12345."):
            assert HIDDEN in redaction.hide(text, secrets)
        assert redaction.hide("True None open", secrets) == "True None open"

    def test_a_value_of_few_characters_is_left_since_it_is_everywhere(self):
        assert redaction.texts({"pin": "abc", "key": 7}, {"pin", "key"}) == ()

    def test_the_longest_is_replaced_first(self):
        secrets = redaction.texts({"a": "secret", "b": "secret-and-more"}, {"a", "b"})

        assert redaction.hide("secret-and-more, secret", secrets) == f"{HIDDEN}, {HIDDEN}"


class TestLog:
    def test_a_line_and_its_traceback_have_no_secret_of_the_run(self, formatted):
        with redaction.hiding(("hunter2-hunter2",)):
            line = formatted(
                record("sent %s", "hunter2-hunter2", exc_info=with_error(ValueError("no hunter2-hunter2")))
            )

        assert line["event"] == f"sent {HIDDEN}"
        assert f"ValueError: no {HIDDEN}" in line["exception"]
        assert "hunter2" not in json.dumps(line)

    def test_a_secret_is_hidden_before_a_long_traceback_is_cut(self):
        secret = "s" * 40
        message = "x" * (lines.LONGEST_FIELD // 2 - 60) + secret * 10
        with redaction.hiding((secret,)):
            told = lines.in_words(with_error(ValueError(message + "y" * lines.LONGEST_FIELD)))

        assert "left out" in told
        assert "ssss" not in told

    def test_a_field_with_a_name_of_the_setting_is_hidden(self, monkeypatch):
        monkeypatch.setenv("ROTA_REDACT", "password")

        line = lines.without_secrets(
            None, "", {"event": "x", "password": "p", "form": {"Password": 1}, "level": "info"}
        )

        assert line == {"event": "x", "password": HIDDEN, "form": {"Password": HIDDEN}, "level": "info"}

    def test_a_line_of_dramatiq_hides_what_its_messages_traceback_quotes(self, formatted, monkeypatch):
        monkeypatch.setenv("ROTA_REDACT", "password")
        message = Message("default", "fast", (), {"form": {"password": "hunter2-hunter2"}}, {}, message_id="m-1")
        error = with_error(ValueError("no hunter2-hunter2"))

        line = formatted(record("Failed to process message %s", message, name="dramatiq.worker", exc_info=error))

        assert line["event"] == "Failed to process message fast m-1"
        assert f"ValueError: no {HIDDEN}" in line["exception"]
