"""Bugs of flow control that are added to the core from outside, at least one for each rule of ``flow_rules.py``."""

import time

from sqlalchemy import Connection

from core.dispatcher.turns import TurnKeeper
from core.ledger import cancels, claims, deadlines, later, processes, runs, slots, subjects, turns, unconnected, waiting
from core.ledger.models import MAY_START
from core.middleware.subject_check import SubjectCheck
from core.worker import outcomes
from core.worker.wakes import Wakes
from tests.faults.plant import Plant, replaced, retold, rewritten

#: The dispatcher checks turns only after this time.
SELDOM_SECONDS = 16.0
SUBJECTS_AWAY = ("subjects away", 3.0, None, 5.0)


def jumped_queue() -> None:
    """A claim checks for running rivals, but not for rivals that come first. The newest run is woken."""
    claims.CLAIM = rewritten(claims.CLAIM, f"WHEN EXISTS ({claims.FORMER}) THEN 'waiting'", "")
    claims.CLAIM_MANY = rewritten(claims.CLAIM_MANY, f"OR EXISTS ({claims.FORMER})", "")
    turns.WAKE = retold(turns.WAKE, "ORDER BY due_at, id LIMIT 1", "ORDER BY due_at DESC, id DESC LIMIT 1")


def lost_place() -> None:
    """A run whose process died is due now, so it comes after the runs that waited for it."""
    processes.RECOVER = retold(
        processes.RECOVER,
        "crashes = crashes + 1, process_id",
        "due_at = clock_timestamp(), crashes = crashes + 1, process_id",
    )


def lost_rest() -> None:
    """A run without a connection becomes due after its rest, so it comes after runs that were requested meanwhile."""
    unparked = rewritten(unconnected.RELEASE, "exclusive AND NOT is_over", "false")
    unconnected.RELEASE = rewritten(unparked, "exclusive OR is_over", "is_over")


def slow_wakes() -> None:
    """An ended run does not wake the next run, and the dispatcher seldom checks turns."""
    look, looked = TurnKeeper.look, [time.monotonic()]

    def look_seldom(self: TurnKeeper, connection: Connection) -> int:
        if time.monotonic() < looked[0] + SELDOM_SECONDS:
            return 0
        looked[0] = time.monotonic()
        return look(self, connection)

    TurnKeeper.look = look_seldom  # type: ignore[method-assign]
    Wakes.deal_with = lambda *_args: None  # type: ignore[method-assign]


def skipped_request() -> None:
    """A request that meets another run of its key is skipped, as a slot would be."""
    claims.CLAIM = rewritten(
        claims.CLAIM, "WHEN $8 AND state = 'queued' AND slot IS NOT NULL THEN 'skipped'", "WHEN true THEN 'skipped'"
    )


def tried_and_missed() -> None:
    """A late slot is missed by its policy, although a worker has tried it."""
    slots.MISS = retold(slots.MISS, "WHEN tried IS NOT NULL THEN NULL", "")


def freed_key() -> None:
    """A cancel ends a running run at once, so its key is free while its function still works."""
    cancels.CANCEL = rewritten(
        cancels.CANCEL,
        "SET token = drawn.token,",
        "SET state = 'dead', reason = 'cancelled', sent_at = NULL, finished_at = clock_timestamp(),",
    )


def unfenced_cancel() -> None:
    """A cancel keeps the run's token, and the process does not check for cancels."""
    cancels.CANCEL = rewritten(cancels.CANCEL, "SET token = drawn.token,", "SET token = run.token,")
    cancels.of_process = lambda *_args: {}


def late_start() -> None:
    """Deadlines are not checked."""
    claims.CLAIM = rewritten(claims.CLAIM, MAY_START, "true")
    claims.CLAIM_MANY = rewritten(claims.CLAIM_MANY, MAY_START, "true")
    deadlines.expire = lambda *_args: []


def expired_retry() -> None:
    """A deadline also applies after the first start."""
    lax = retold(deadlines.EXPIRE, "state = 'queued' AND expires_at", "state IN ('queued', 'retrying') AND expires_at")
    deadlines.EXPIRE = retold(lax, "AND attempt = 0", "")


def counted_later() -> None:
    """Later counts as a failure."""
    later.POSTPONE = rewritten(later.POSTPONE, "reason = 'later',", "reason = 'later', failures = failures + 1,")


def endless_later() -> None:
    """Later is not limited by the run's deadline."""
    later.POSTPONE = rewritten(later.POSTPONE, "then_at > least(since + $7, expires_at) AS is_over", "false AS is_over")


def uncounted_later() -> None:
    """The ledger does not count how often a run was postponed."""
    later.POSTPONE = rewritten(later.POSTPONE, "laters = coalesce(laters, 0) + 1", "laters = NULL")


def stubborn_retry() -> None:
    """A run is retried after any error."""
    outcomes.may_retry = lambda *_args: True


def hasty_orphan() -> None:
    """A run is orphaned although its subject only cannot be looked up."""
    subjects.hand_back = subjects.orphan


def unasked_subject() -> None:
    """The subject is not looked up."""
    SubjectCheck._judge = lambda *_args: None  # type: ignore[method-assign]


def unlocked_find() -> None:
    """A run that was found waiting may start before the transaction that found it has committed."""
    waiting.OF_KEY = replaced(waiting.OF_KEY, "FOR NO KEY UPDATE SKIP LOCKED", "")


def ignored_limit() -> None:
    """A claim does not check whether its limits have room."""
    crowded = "ORDER BY standing.place LIMIT 1"
    claims.CLAIM_LIMITED = rewritten(claims.CLAIM_LIMITED, crowded, f"AND false {crowded}")


def endless_tokens() -> None:
    """A start takes no token."""
    claims.CLAIM_LIMITED = rewritten(claims.CLAIM_LIMITED, "tokens - 1, now,", "tokens, now,")


def forgotten_attempt() -> None:
    """A failed attempt is not kept."""
    runs.FAIL = rewritten(runs.FAIL, "FROM ended WHERE true", "FROM ended WHERE false")


def of(plant: object, *kinds: str, **options: object) -> Plant:
    """Return a plant with the name of its function."""
    return Plant(plant.__name__.replace("_", "-"), plant, frozenset(kinds), **options)  # type: ignore[attr-defined,arg-type]


SKIPS = "DROP TRIGGER rota_runs_requests_wait ON rota_runs"
STARTS_LATE = "DROP TRIGGER rota_runs_starts_in_time ON rota_runs"
FLOW_PLANTS = [
    of(jumped_queue, "order"),
    of(lost_place, "place lost"),
    of(lost_rest, "place lost"),
    of(slow_wakes, "turn late"),
    of(skipped_request, "request skipped", schema=SKIPS),
    of(tried_and_missed, "tried and missed"),
    of(freed_key, "overlap"),
    of(unfenced_cancel, "cancel undone"),
    of(late_start, "started late", schema=STARTS_LATE),
    of(expired_retry, "expired"),
    of(counted_later, "miscounted"),
    of(endless_later, "later unbounded"),
    of(uncounted_later, "later miscounted"),
    of(stubborn_retry, "tried again"),
    of(hasty_orphan, "orphaned"),
    of(unasked_subject, "subject ignored"),
    of(unlocked_find, "change missed"),
    of(forgotten_attempt, "attempt not kept"),
    of(ignored_limit, "limit exceeded"),
    of(endless_tokens, "pace exceeded"),
]
#: Groups of plants that do not hide each other's violations, so that one round can find all plants of a group.
TOGETHER = {
    "turns": ("jumped-queue", "lost-place", "late-start", "tried-and-missed", "counted-later", "stubborn-retry",
              "forgotten-attempt", "unasked-subject"),
    "requests": ("skipped-request", "unfenced-cancel", "expired-retry", "hasty-orphan", "uncounted-later",
                 "endless-tokens", "lost-rest"),
    "races": ("freed-key", "unlocked-find", "ignored-limit"),
    "wakes": ("slow-wakes", "endless-later"),
}  # fmt: skip
