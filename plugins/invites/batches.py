"""Invites many people at once, from a list with an address in each line.

A line that invites nobody does not stop the others: a broken address, an address that is in the list twice, a person
who has a seat or waits. Each such line is reported with its number and the reason, and without the address.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from sqlalchemy import ARRAY, Text, any_, cast, func, insert, literal, select
from sqlalchemy.orm import Session

from plugins.invites.addresses import normalize
from plugins.invites.asking import OF_BATCHES
from plugins.invites.codes import MOST_DAYS, check_span
from plugins.invites.errors import BadAddress, BadValue
from plugins.invites.giving import give_seats, is_open
from plugins.invites.instants import at
from plugins.invites.models import Batch, BatchProblem, Seat, SeatState, Team, Waiting, WaitingState
from plugins.invites.pools import take_turn
from plugins.invites.teams import check_names

MOST_LINES = 1_000_000
AT_ONCE = 1000
HAS_SEAT, WAITS = "the person has a seat already", "the person waits already"


@dataclass(frozen=True, slots=True)
class Report:
    """What becomes of a list: how many of its people have a seat at once, how many wait, and the lines without effect.

    ``problems`` has the reasons by the numbers of the lines, which are counted from 1. If more than a thousand people
    have a seat at once, a job gives the other free seats soon, and they are counted as waiting.
    """

    lines: int
    seats: int
    waiting: int
    problems: dict[int, str] = field(default_factory=dict)
    batch_id: int | None = None


def invite_many(
    session: Session, emails: Iterable[str], pool: str, now: datetime | None = None, *, days: int | None = None
) -> Report:
    """Give the people of a list seats of a pool, for ``days``, or put them into the waiting list, in the list's order.

    People who ask themselves have precedence. Raises BadValue for a bad pool, or more than a million lines.
    """
    when = at(session, now)
    lines = _read(emails, pool, days)
    wanted, problems = _people(lines)  # before the turn, since a long list takes seconds
    take_turn(session, pool)
    problems = _without_known(session, pool, wanted, problems)
    batch_id = session.scalars(
        insert(Batch).values(pool=pool, lines=len(lines), days=days, created_at=when).returning(Batch.id)
    ).one()
    _ask(session, list(wanted), pool, batch_id, days, when)
    _record(session, batch_id, problems)
    give_seats(session, pool, when)
    of_batch = (Waiting.batch_id == batch_id, Waiting.state == WaitingState.PLACED)
    seats = session.scalars(select(func.count()).where(*of_batch)).one()
    return Report(len(lines), seats, len(wanted) - seats, problems, batch_id)


def preview(
    session: Session, emails: Iterable[str], pool: str, now: datetime | None = None, *, days: int | None = None
) -> Report:
    """Return the report that ``invite_many`` would return now, and change nothing. ``batch_id`` is None."""
    when = at(session, now)
    lines = _read(emails, pool, days)
    wanted, problems = _people(lines)
    problems = _without_known(session, pool, wanted, problems)
    free = select(func.coalesce(func.sum(Team.seats - Team.taken), 0)).where(Team.pool == pool, is_open(when))
    ahead = select(func.count()).where(Waiting.pool == pool, Waiting.state == WaitingState.WAITING)
    left = session.scalars(free).one() - session.scalars(ahead).one()
    seats = max(min(left, len(wanted), AT_ONCE), 0)
    return Report(len(lines), seats, len(wanted) - seats, problems)


def list_problems(session: Session, batch_id: int) -> Sequence[BatchProblem]:
    """Return the lines of a batch that invited nobody."""
    rows = select(BatchProblem).where(BatchProblem.batch_id == batch_id)
    return session.scalars(rows.order_by(BatchProblem.line)).all()


def _read(emails: Iterable[str], pool: str, days: int | None) -> list[str]:
    check_names(pool=pool)
    if days is not None:
        check_span("days", days, MOST_DAYS)
    lines = list(islice(emails, MOST_LINES + 1))
    if len(lines) > MOST_LINES:
        raise BadValue("emails", f"more than {MOST_LINES:,} lines", "fewer; divide the list")
    return lines


def _people(lines: Sequence[str]) -> tuple[dict[str, int], dict[int, str]]:
    """Return the people of a list, with their first lines, and the problems of the other lines."""
    wanted: dict[str, int] = {}
    problems: dict[int, str] = {}
    for number, text in enumerate(lines, start=1):
        try:
            first = wanted.setdefault(normalize(text), number)
        except BadAddress as error:
            problems[number] = str(error)
        else:
            if first != number:
                problems[number] = f"the same address as in line {first}"
    return wanted, problems


def _without_known(session: Session, pool: str, wanted: dict[str, int], problems: dict[int, str]) -> dict[int, str]:
    """Take the people who cannot be invited out of ``wanted``. Return all problems, by line."""
    known = {wanted.pop(email): why for email, why in _known(session, [*wanted], pool).items()}
    return dict(sorted({**problems, **known}.items()))


def _known(session: Session, emails: list[str], pool: str) -> dict[str, str]:
    """Return the people who cannot be invited, each with the reason: they have a seat of the pool, or wait for one."""
    among = any_(cast(emails, ARRAY(Text)))
    in_line = select(Waiting.email).where(
        Waiting.pool == pool, Waiting.state == WaitingState.WAITING, Waiting.email == among
    )
    seated = select(Seat.email).where(
        Seat.pool == pool, Seat.state.not_in([SeatState.FREED, SeatState.REMOVING]), Seat.email == among
    )
    found = dict.fromkeys(session.scalars(in_line), WAITS)
    return found | dict.fromkeys(session.scalars(seated), HAS_SEAT)


def _ask(session: Session, emails: list[str], pool: str, batch_id: int, days: int | None, now: datetime) -> None:
    """Put many people at the end of the waiting list, in order, with one statement."""
    people = func.unnest(cast(emails, ARRAY(Text))).table_valued("email", with_ordinality="line").render_derived()
    columns = [Waiting.email, Waiting.pool, Waiting.priority, Waiting.batch_id, Waiting.days]
    rows = select(people.c.email, literal(pool), literal(OF_BATCHES), literal(batch_id), literal(days)).order_by(
        people.c.line
    )
    times = [Waiting.asked_at, Waiting.changed_at]
    session.execute(insert(Waiting).from_select([*columns, *times], rows.add_columns(literal(now), literal(now))))


def _record(session: Session, batch_id: int, problems: dict[int, str]) -> None:
    rows = [{"batch_id": batch_id, "line": line, "problem": problem} for line, problem in problems.items()]
    if rows:
        session.execute(insert(BatchProblem), rows)
