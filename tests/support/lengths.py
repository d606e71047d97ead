"""How long the crash tests observe and wait. ``make crash SECONDS=600`` and more uses the long form."""

import os

_SECONDS = float(os.environ.get("CRASH_SECONDS", "180"))
IS_LONG = _SECONDS >= 600
#: How long slots are observed, in seconds.
WATCHED_SECONDS = 120.0 if IS_LONG else 20.0
#: How long Redis or PostgreSQL is away, in seconds.
AWAY_SECONDS = 30 if IS_LONG else 8
