"""How long the crash tests watch and wait. CI uses the short lengths; ``CRASH_SECONDS=120`` is the long form."""

import os

#: For how long slots are watched.
WATCHED_SECONDS = float(os.environ.get("CRASH_SECONDS", "35"))
IS_LONG = WATCHED_SECONDS >= 120
#: For how long Redis or PostgreSQL is away.
AWAY_SECONDS = 30 if IS_LONG else 8
