"""Addresses of people in one spelling, so that a person who writes an address in two ways is one person.

``Ann@Bücher.example``, `` ann@BÜCHER.example`` and ``ann@xn--bcher-kva.example`` are one address. A dot or a ``+``
before the ``@`` stays: for most providers, such addresses are those of other people.
"""

from email_validator import EmailNotValidError, validate_email

from plugins.invites.errors import BadAddress

#: RFC 5321, section 4.5.3.1.3: a path has at most 256 characters, with its two brackets.
LONGEST = 254


def normalize(text: str) -> str:
    """Return the one spelling of an address: in lower case, and with its domain in ASCII.

    Raises BadAddress. Its message does not have the text.
    """
    address = text.strip()
    if not address:
        raise BadAddress("the address is empty")
    if len(address) > LONGEST:
        raise BadAddress(f"the address has more than {LONGEST} characters")
    if "@" not in address:
        raise BadAddress("the address has no @")
    try:
        found = validate_email(address, check_deliverability=False, test_environment=True)
    except (EmailNotValidError, UnicodeError):
        raise BadAddress("the text is not an e-mail address, such as ann@example.org") from None
    return f"{found.local_part.lower()}@{found.ascii_domain.lower()}"
