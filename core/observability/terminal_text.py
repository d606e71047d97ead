"""Makes untrusted text safe for a terminal. Keys, errors, names and reasons may contain control characters."""

import unicodedata

#: Control characters (C0, DEL and C1), format characters such as those that change the writing direction, surrogates,
#: and separators of lines and paragraphs.
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
#: Two format characters that scripts and emoji need, and that are harmless.
JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""Return ``text`` on one line, with control characters escaped, such as ``\x1b``, ``\n`` or ``\u202e``."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in OBEYED or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode()
