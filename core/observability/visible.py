"""Text of strangers on a terminal: keys, errors, names and reasons may hold what a terminal obeys."""

import unicodedata

#: Controls (C0, DEL and C1), marks such as those that turn the direction of writing, halves of pairs, and separators
#: of lines and paragraphs.
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
#: Two marks that scripts and emoji are written with, and that do no harm.
JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""``text`` on one line, with what a terminal would obey written out, as ``\x1b``, ``\n`` or ``\u202e``."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in OBEYED or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode()
