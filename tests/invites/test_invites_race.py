"""Many people ask for few seats at the same moment: 40 people with INVITES_ASKERS unset, which is the size for CI."""

import os
import random
from threading import Event

import pytest
from invites_world import NOON, check, email, in_threads, placed_before_waiting
from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.invites import CodeRefused, InvitesError, move_member, redeem, remove_member, set_seats
from plugins.invites.consuming import consume
from plugins.invites.models import Code, Redemption, Request, Seat, Waiting
from plugins.invites.outcomes import begin, confirm, refuse

pytestmark = pytest.mark.slow

#: A quarter of them get seats.
ASKERS, THREADS = int(os.environ.get("INVITES_ASKERS", "40")), 20


def ask(engine, code, numbers):
    """Let people redeem a code, each in a transaction of its own. Every tenth transaction is rolled back at first."""
    for number in numbers:
        with Session(engine) as own:
            if number % 10 == 0:
                redeem(own, code, email(f"user-{number}"))
                own.rollback()
            redeem(own, code, email(f"user-{number}"))
            own.commit()


def in_line(session):
    session.rollback()
    return session.execute(select(Waiting.id, Waiting.state).order_by(Waiting.priority.desc(), Waiting.id)).all()


def test_the_seats_go_to_the_first_and_the_others_wait_in_order(world, database):
    seats = ASKERS // 4
    world.team("red", seats=seats // 3)
    world.team("blue", seats=seats - seats // 3)
    code = world.code(uses=ASKERS)

    in_threads(THREADS, lambda index: ask(database, code, range(index, ASKERS, THREADS)))

    rows = in_line(world.session)
    assert [state for _, state in rows] == ["placed"] * seats + ["waiting"] * (ASKERS - seats)
    assert world.taken() == {"blue": seats - seats // 3, "red": seats // 3}
    assert len(world.open_requests("invite")) == len(world.runs("process-invite")) == seats
    check(world.session)


def test_a_code_that_is_used_twice_at_once_gives_one_seat(world, database):
    world.team(seats=50)
    code = world.code(uses=1)

    def use(index):
        with Session(database) as own:
            try:
                redeem(own, code, email(f"user-{index}"))
            except CodeRefused:
                return "refused"
            own.commit()
            return "seat"

    assert sorted(in_threads(THREADS, use)) == ["refused"] * (THREADS - 1) + ["seat"]
    assert world.session.scalar(select(Code.used)) == 1


def test_a_person_who_asks_twice_at_once_has_one_seat(world, database):
    world.team(seats=50)
    codes = [world.code(), world.code(), world.code()]

    def use(index):
        with Session(database) as own:
            answered = redeem(own, codes[index % 3], email("Ann" if index % 2 else "ann")).state
            own.commit()
            return answered

    assert {*in_threads(THREADS, use)} == {"seat"}
    assert world.states() == {"ann": ["reserved"]}
    assert len(world.session.scalars(select(Redemption)).all()) == 1


class Bustle:
    """Threads that ask, remove, move, change the number of seats, and record outcomes, until all have asked."""

    def __init__(self, engine, code, seed):
        self.engine, self.code, self.seed = engine, code, seed
        self.over = Event()
        self.samples = 0

    def work(self, index):
        acts = [self.change_seats, self.remove, self.remove, self.move, self.move, self.answer, self.answer, self.look]
        if index < len(acts):
            dice = random.Random(self.seed * 100 + index)
            while not self.over.is_set():
                with Session(self.engine) as own:
                    acts[index](own, dice)
        else:
            askers = THREADS - len(acts)
            ask(self.engine, self.code, range(index - len(acts), ASKERS, askers))

    def attempt(self, own, act):
        try:
            act()
            own.commit()
        except InvitesError:
            own.rollback()

    def change_seats(self, own, dice):
        name = dice.choice(("red", "blue", "green"))
        self.attempt(own, lambda: set_seats(own, name, dice.randrange(ASKERS // 20, ASKERS // 6)))

    def somebody(self, own, dice):
        seats = own.execute(select(Seat.email, Seat.team_id).where(Seat.state.in_(["invited", "member"]))).all()
        own.rollback()
        if not seats:
            self.over.wait(0.01)
            return None
        address, team_id = dice.choice(seats)
        return address, ("red", "blue", "green")[team_id - 1]

    def remove(self, own, dice):
        if found := self.somebody(own, dice):
            self.attempt(own, lambda: remove_member(own, found[1], found[0]))

    def move(self, own, dice):
        if found := self.somebody(own, dice):
            self.attempt(own, lambda: move_member(own, *found, dice.choice(("red", "blue", "green"))))

    def answer(self, own, dice):
        for request_id in own.scalars(select(Request.id).where(Request.state.in_(["new", "sent"])).limit(20)).all():
            begin(own, request_id, NOON)
            own.commit()
            request = own.get_one(Request, request_id)
            if request.kind == "invite" and dice.random() < 0.2:
                refuse(own, request_id, NOON, status=422, problem="no")
            else:
                confirm(own, request_id, NOON)
            own.commit()
        consume(own, NOON, "club", checkpoint=lambda progress: own.commit())

    def look(self, own, dice):
        check(own)
        self.samples += 1
        self.over.wait(0.02)


def test_no_team_is_over_and_nobody_is_lost_while_seats_are_added_removed_and_moved(world, database):
    for name in ("red", "blue", "green"):
        world.team(name, seats=ASKERS // 12)
    bustle = Bustle(database, world.code(uses=ASKERS), seed=7)

    def work(index):
        try:
            bustle.work(index)
        finally:
            if index >= 8 and next(left) == 1:
                bustle.over.set()

    left = iter(range(THREADS - 8, 0, -1))
    in_threads(THREADS, work)
    while world.sends():
        pass
    consume(world.session, NOON, None, checkpoint=world.checkpoint)

    rows = in_line(world.session)
    assert len(rows) == ASKERS
    assert placed_before_waiting(rows)
    assert bustle.samples
    assert not {"inviting", "removing"} & {*world.moves()}
    held = [state for states in world.states().values() for state in states if state != "freed"]
    assert len(held) == len(world.session.scalars(select(Seat.email).where(Seat.state != "freed").distinct()).all())
    check(world.session)
    if world.waiting():
        assert sum(world.taken().values()) == sum(world.seats().values())
