"""Addresses of people are compared in one spelling, and a text that is none is refused without repeating it."""

import pytest

from plugins.invites.addresses import normalize
from plugins.invites.errors import BadAddress


@pytest.mark.parametrize(
    "text",
    [
        "ann@xn--bcher-kva.example",
        "Ann@Bücher.example",
        "  ANN@BÜCHER.EXAMPLE\r\n",
        "ann@bu\u0308cher.example",
        "ann@XN--BCHER-KVA.example",
    ],
)
def test_spellings_of_one_address_become_one(text):
    assert normalize(text) == "ann@xn--bcher-kva.example"


@pytest.mark.parametrize("text", ["a.nn@example.org", "ann+rota@example.org", "ann_@example.org"])
def test_addresses_of_other_people_stay_different(text):
    assert normalize(text) == text


def test_a_local_part_of_another_script_has_one_spelling():
    assert normalize("Zoe\u0308@example.org") == normalize("ZOË@EXAMPLE.ORG") == "zoë@example.org"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the address is empty"),
        (" \t", "the address is empty"),
        ("secret", "the address has no @"),
        ("secret" * 50 + "@example.org", "the address has more than 254 characters"),
        ("secret@", "not an e-mail address"),
        ("@example.org", "not an e-mail address"),
        ("secret@@example.org", "not an e-mail address"),
        ("se cret@example.org", "not an e-mail address"),
        ("Secret <secret@example.org>", "not an e-mail address"),
        ("secret@example..org", "not an e-mail address"),
        ("secret\x00@example.org", "not an e-mail address"),
        ("secret\u200b@example.org", "not an e-mail address"),
        ("secret@xn--\ud800.org", "not an e-mail address"),
        ("secret@example.org, other@example.org", "not an e-mail address"),
    ],
)
def test_a_text_that_is_no_address_is_refused_without_repeating_it(text, reason):
    with pytest.raises(BadAddress) as refused:
        normalize(text)

    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)
