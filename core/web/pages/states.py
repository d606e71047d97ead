"""How the pages show a state: always by a glyph, a word and a colour."""

from markupsafe import Markup

#: The glyph and the colour of each word.
LOOKS = {
    "succeeded": ("ok", "ok"),
    "running": ("run", "run"),
    "queued": ("wait", "wait"),
    "retrying": ("retry", "retry"),
    "dead": ("dead", "dead"),
    "skipped": ("skip", "skip"),
    "missed": ("miss", "miss"),
    "orphaned": ("orphan", "orphan"),
    "to come": ("wait", "wait"),
    "not on record": ("orphan", "wait"),
    "not due": ("skip", "skip"),
    # attempts
    "failed": ("dead", "dead"),
    "crashed": ("dead", "dead"),
    "released": ("retry", "retry"),
    "later": ("late", "late"),
    "cancelled": ("skip", "skip"),
    # processes, plugins, releases, operations
    "alive": ("hook", "ok"),
    "loaded": ("hook", "ok"),
    "ended": ("skip", "skip"),
    "disabled": ("pause", "skip"),
    "broken": ("dead", "dead"),
    "died": ("dead", "dead"),
    "no heartbeat": ("dead", "dead"),
    "lost PostgreSQL": ("dead", "dead"),
    "stuck": ("dead", "dead"),
    "stopped": ("skip", "skip"),
    "done": ("hook", "ok"),
    "paused": ("pause", "skip"),
    "late": ("late", "late"),
    "valid": ("hook", "ok"),
    "expired": ("skip", "skip"),
    # health
    "connected": ("hook", "ok"),
    "available": ("hook", "ok"),
    "in time": ("hook", "ok"),
    "failing": ("dead", "dead"),
    "no slot yet": ("wait", "wait"),
    "not used": ("skip", "skip"),
    "unknown": ("orphan", "wait"),
    "disconnected": ("dead", "dead"),
    "unavailable": ("dead", "dead"),
    "overdue": ("dead", "dead"),
}
UNKNOWN = ("orphan", "wait")
GLYPH = Markup('<svg class="g{}" aria-hidden="true"><use href="#{}"/></svg>')
STATE = Markup('<span class="st {}">{}{}</span>')


def glyph(word: str, *, is_coloured: bool = False) -> Markup:
    """Return the glyph of a state."""
    name, colour = LOOKS.get(word, UNKNOWN)
    return GLYPH.format(f" {colour}" if is_coloured else "", name)


def state(word: str, reason: str | None = None) -> Markup:
    """Return a state with its reason, such as ``skipped: overlap``."""
    return STATE.format(colour(word), glyph(word), f"{word}: {reason}" if reason else word)


def colour(word: str) -> str:
    """Return the name of the colour of a state."""
    return LOOKS.get(word, UNKNOWN)[1]
