"""``python -m tests.faults``: runs rounds, each with a seed of its own, until the time is over.

Exit status 0: no violation; 1: violations, which are printed with their seed and history; 2: wrong usage.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import campaign, report
from tests.faults.checker import check
from tests.faults.history import History
from tests.faults.planted import PLANTS
from tests.faults.world import servers

#: A campaign of at least this length uses the default lease and longer rounds.
LONG_FROM_SECONDS = 600
#: The time that a round needs in addition to its faults, to start and to settle.
AROUND_SECONDS = 30.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=180, help="how long the campaign lasts; from 600 s on, the form is long"
    )
    parser.add_argument(
        "--seed", type=int, help="the seed of the first round; each later round has the next seed; by default the time"
    )
    parser.add_argument("--rounds", type=int, help="the most rounds")
    parser.add_argument(
        "--form", choices=campaign.FORMS, help="rounds of 45 s with short leases, or of 3 min with real ones"
    )
    parser.add_argument("--plant", metavar="NAME,…", help=f"bugs to plant: {', '.join(sorted(PLANTS))}")
    parser.add_argument("--keep", type=Path, help="a folder for the history and logs of every round")
    asked = parser.parse_args()
    if unknown := set((asked.plant or "").split(",")) - PLANTS.keys() - {""}:
        parser.error(f"--plant: there is no {', '.join(sorted(unknown))}")
    return asked


def main() -> int:
    """Run the campaign. Return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers and processes are ended
    asked = options()
    form = asked.form or ("long" if asked.seconds >= LONG_FROM_SECONDS else "short")
    length, _ = campaign.FORMS[form]
    seed = asked.seed if asked.seed is not None else int(time.time()) % 1_000_000
    tally, began = report.Tally(), time.monotonic()
    with servers() as running:
        if not running.is_small:
            say("disk full: not injected, since no file system can be mounted here")
        while not tally.seeds or (
            time.monotonic() - began + length + AROUND_SECONDS < asked.seconds
            and len(tally.seeds) < (asked.rounds or sys.maxsize)
        ):
            planned = campaign.of_form(form, seed + len(tally.seeds), asked.plant)
            with campaign.staged(running, planned) as (place, history):
                violations = check(history)
                tally.add(history, violations)
                say(f"[{time.monotonic() - began:5.0f} s] {report.round_line(history, violations)}")
                if violations:
                    say(f"to see it again: {again(form, history)}")
                    print("\n".join(report.story(history, violations)))  # noqa: T201
                if violations or asked.keep:
                    keep(asked.keep, history, place.fleet.logs())
    print("\n".join(tally.lines()), flush=True)  # noqa: T201
    return 1 if tally.kinds else 0


def again(form: str, history: History) -> str:
    """Return the command that repeats this round alone."""
    plant = f" --plant {history.plant}" if history.plant else ""
    return f"python -m tests.faults --form {form} --rounds 1 --seed {history.seed}{plant}"


def keep(folder: Path | None, history: History, logs: str) -> None:
    """Write the history and the logs of a round to ``folder``, or to a new temporary folder."""
    folder = folder or Path(tempfile.mkdtemp(prefix="rota-faults-kept-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{history.seed}.json").write_text(json.dumps(history.as_json(), default=str, indent=1))
    (folder / f"seed-{history.seed}.log").write_text(logs)
    say(f"history and logs: {folder}")


def say(line: str) -> None:
    """Print a line at once, since a campaign takes long."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
