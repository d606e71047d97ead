"""Says what is missing for ``make servers``, and ends with 1 if something is."""

import sys

from tests.support.servers import missing

if advice := missing(sys.argv[1]):
    sys.exit(f"make servers: these tests need servers of the system; {advice}")
