"""Finds commands in SQL that begin or end a transaction."""

import re

#: What has no commands: comments, texts, quoted names and texts between dollar signs.
QUOTED = re.compile(
    r"""
    --[^\n]* | /\*.*?\*/ | \bE'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | (\$(?:[A-Z_]\w*)?\$).*?\1
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
#: ROLLBACK TO SAVEPOINT, SAVEPOINT and RELEASE do not end the transaction.
COMMAND = re.compile(
    r"""
    \s*(COMMIT|END|ABORT|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION|
    ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def ends_transaction(sql: str) -> bool:
    """Return whether one of the commands in ``sql`` begins or ends a transaction."""
    return any(COMMAND.match(command) for command in QUOTED.sub(" ", sql).split(";"))
