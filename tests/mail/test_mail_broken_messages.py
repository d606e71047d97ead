"""Twenty thousand messages that are broken in many ways: none raises an error, and each content can be stored."""

import io
import time
from datetime import UTC, datetime

import pytest

from plugins.mail.parsing import parse
from tests.support.broken_mail import SEED, broken_messages, is_storable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_no_broken_message_of_many_raises_or_takes_long():
    longest = 0.0

    for content in broken_messages(SEED + 1, 20_000):
        began = time.process_time()
        assert is_storable(parse(io.BytesIO(content), datetime(2026, 3, 3, tzinfo=UTC)))
        longest = max(longest, time.process_time() - began)

    assert longest < 2
