"""How long the crash tests watch and wait; the long form is that of ``make crash SECONDS=600`` and more."""

import os

_SECONDS = float(os.environ.get("CRASH_SECONDS", "180"))
IS_LONG = _SECONDS >= 600
#: For how long slots are watched.
WATCHED_SECONDS = 120.0 if IS_LONG else 20.0
#: For how long Redis or PostgreSQL is away.
AWAY_SECONDS = 30 if IS_LONG else 8
