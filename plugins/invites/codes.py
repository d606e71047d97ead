"""Codes that give seats. A code is stored as its SHA-256 only, and is shown once, when it is made."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from plugins.invites.addresses import normalize
from plugins.invites.asking import OF_PEOPLE, Answer, answer, answer_of_seat, ask
from plugins.invites.errors import BadValue, CodeRefused
from plugins.invites.giving import give_seats
from plugins.invites.instants import at
from plugins.invites.models import Code, Redemption, SeatState
from plugins.invites.pools import take_turn
from plugins.invites.seats import seat_in_pool
from plugins.invites.teams import check_names

#: 128 bits, so that a code cannot be guessed.
BYTES = 16
MOST_USES, MOST_DAYS = 1_000_000, 36_500


@dataclass(frozen=True, slots=True)
class Redeemed(Answer):
    """The answer to a person who has used a code. ``code_id`` is the number of the code, for ``count_redemption``.

    ``code_id`` is None if the person had a seat of the pool already, so that the code was not used.
    """

    code_id: int | None = None


def add_code(
    session: Session,
    pool: str,
    *,
    uses: int = 1,
    days: int | None = None,
    valid_for: timedelta | None = None,
    now: datetime | None = None,
) -> str:
    """Make a code that gives ``uses`` people a seat of ``pool`` each, for ``days``. Return the code.

    The code can be used until ``valid_for`` has passed. Raises BadValue.
    """
    check_names(pool=pool)
    check_span("uses", uses, MOST_USES)
    if days is not None:
        check_span("days", days, MOST_DAYS)
    code = secrets.token_urlsafe(BYTES)
    ends = None if valid_for is None else at(session, now) + valid_for
    session.execute(insert(Code).values(sha256=digest(code), pool=pool, uses=uses, days=days, expires_at=ends))
    return code


def redeem(session: Session, code: str, email: str, now: datetime | None = None) -> Redeemed:
    """Give a person a seat for a code, or put the person into the waiting list if none is free.

    If the person has used this code before, return the present state of the same wish. Raises BadAddress, or
    CodeRefused if the code is unknown, over, or used up.
    """
    address, when = normalize(email), at(session, now)
    found = _find(session, code)
    take_turn(session, found.pool)
    known = _redemption(session, found, address)
    if known is not None:
        return _redeemed(answer(session, known), found.id)
    seat = seat_in_pool(session, found.pool, address)
    if seat is not None and seat.state != SeatState.REMOVING:
        return _redeemed(answer_of_seat(session, seat), None)
    _use(session, found, when)
    waiting_id = ask(session, address, found.pool, priority=OF_PEOPLE, days=found.days, now=when)
    row = {"code_id": found.id, "email": address, "waiting_id": waiting_id, "redeemed_at": when}
    session.execute(insert(Redemption).values(row))
    give_seats(session, found.pool, when)
    return _redeemed(answer(session, waiting_id), found.id)


def digest(code: str) -> bytes:
    """Return the SHA-256 of a code, which is stored instead of the code."""
    return sha256(code.strip().encode(errors="surrogatepass")).digest()


def check_span(name: str, number: int, most: int) -> None:
    """Raise BadValue unless ``number`` is 1 to ``most``."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise BadValue(name, number, f"1 to {most:,}")


def _find(session: Session, code: str) -> Code:
    found = session.scalars(select(Code).where(Code.sha256 == digest(code))).one_or_none()
    if found is None:
        raise CodeRefused("the code is unknown; check its spelling")
    return found


def _redemption(session: Session, code: Code, email: str) -> int | None:
    return session.scalar(select(Redemption.waiting_id).where(Redemption.code_id == code.id, Redemption.email == email))


def _use(session: Session, code: Code, now: datetime) -> None:
    if code.expires_at is not None and code.expires_at <= now:
        raise CodeRefused("the code is over; ask for another one")
    used = update(Code).where(Code.id == code.id, Code.used < Code.uses).values(used=Code.used + 1)
    if session.scalar(used.returning(Code.id)) is None:
        raise CodeRefused("the code is used up; ask for another one")


def _redeemed(found: Answer, code_id: int | None) -> Redeemed:
    return Redeemed(found.state, found.team, found.seat_id, found.ahead, code_id)
