"""Makes sample data: users and agents who chat, so that the service has work to show.

``python -m plugins.customer_service.simulation`` reads DATABASE_URL and runs until SIGTERM or SIGINT. The names of its
users and agents begin with ``simulated-``, and it changes no others.
"""

import logging
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from threading import Event
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import DateTime, Engine, create_engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from plugins.customer_service.agents import agent_offline, agent_online, register_agent
from plugins.customer_service.assignment import assign_batch
from plugins.customer_service.chats import ACTIVE, end_chat, record_message
from plugins.customer_service.errors import ChatEnded
from plugins.customer_service.models import Agent, Chat, EntryState, QueueEntry, Side
from plugins.customer_service.queue import join_queue, leave_queue

log = logging.getLogger("customer_service.simulation")

NAME = "simulated-"
AGENTS = 6
CAPACITY = 8
#: One user joins in each step.
STEP = timedelta(seconds=1)
REPORT_EVERY = timedelta(seconds=10)
#: The wait before the program asks again for a database that is absent.
RETRY_AFTER = timedelta(seconds=2)

CHANCE_THAT_SOMEBODY_WRITES = 0.3
CHANCE_THAT_THE_CHAT_IS_DONE = 0.05
CHANCE_THAT_SOMEBODY_GIVES_UP_WAITING = 0.05
CHANCE_THAT_AN_AGENT_COMES_OR_GOES = 0.05
#: Every fifth user stops writing after the agent's first message, so that warnings and time-outs are seen.
ONE_QUIET_USER_IN = 5
#: In a new database some chats have been quiet for a while, so that the first sweeps have something to find.
QUIET_FOR = [timedelta(seconds=seconds) for seconds in (40, 50, 70, 80, 100, 110)]

T = TypeVar("T")
P = ParamSpec("P")


class ActiveChat(NamedTuple):
    """A chat as it was a moment ago."""

    id: int
    user_id: str
    last_sender: str | None

    @property
    def next_sender(self) -> Side:
        return Side.USER if self.last_sender == Side.AGENT else Side.AGENT


def main() -> None:
    """Simulate until told to stop. Exits with status 2 if DATABASE_URL is not set."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s simulation: %(message)s")
    url = os.environ.get("DATABASE_URL") or sys.exit("DATABASE_URL is not set; the simulation needs a database")
    stop = _stop_on_signals()
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), hide_parameters=True, pool_size=1)
    log.info("started: %d agents, about one user per second; Ctrl-C ends it", AGENTS)
    _simulate(engine, stop, random.Random())
    log.info("stopped")


def step(engine: Engine, now: datetime, dice: random.Random) -> Counter[str]:
    """Make the events of one second, each in its own transaction. Return their counts."""
    done: Counter[str] = Counter()
    for happens in (_hire, _come_and_go, _join, _give_up):
        done += _in_transaction(engine, happens, now, dice)
    for chat in _in_transaction(engine, _active_chats):
        done += _in_transaction(engine, _go_on, chat, now, dice)
    return done


def _simulate(engine: Engine, stop: Event, dice: random.Random) -> None:
    done: Counter[str] = Counter()
    steps_to_a_report = REPORT_EVERY // STEP
    while not stop.is_set():
        made = _attempt(engine, dice)
        stop.wait((STEP if made is not None else RETRY_AFTER).total_seconds())
        done.update(made or {})
        steps_to_a_report -= 1
        if not steps_to_a_report:
            log.info("%s", _sentence(done))
            done.clear()
            steps_to_a_report = REPORT_EVERY // STEP


def _attempt(engine: Engine, dice: random.Random) -> Counter[str] | None:
    try:
        return step(engine, _in_transaction(engine, _database_time), dice)
    except DBAPIError as error:
        log.warning("waiting for the database: %s", str(error.orig).strip().partition("\n")[0])
        return None


def _in_transaction(engine: Engine, do: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    with Session(engine) as session, session.begin():
        return do(session, *args, **kwargs)


def _database_time(session: Session) -> datetime:
    return session.scalars(select(func.clock_timestamp(type_=DateTime(timezone=True)))).one()


def _hire(session: Session, now: datetime, dice: random.Random) -> Counter[str]:
    if _simulated_agents(session):
        return Counter()
    for number in range(1, AGENTS + 1):
        rating = Decimal(dice.randint(30, 50)) / 10
        register_agent(session, f"{NAME}agent-{number}", f"Agent {number}", capacity=CAPACITY, rating=rating)
        agent_online(session, f"{NAME}agent-{number}")
    for number, ago in enumerate(QUIET_FOR):
        _chat_that_fell_quiet(session, f"{NAME}user-{number * ONE_QUIET_USER_IN:010x}", now - ago)
    return Counter({"agents hired": AGENTS, "users fell quiet earlier": len(QUIET_FOR)})


def _chat_that_fell_quiet(session: Session, user_id: str, last_written_at: datetime) -> None:
    entry = join_queue(session, user_id, last_written_at)
    assign_batch(session, last_written_at)
    chat_id = session.scalars(select(Chat.id).where(Chat.queue_entry_id == entry.id)).one()
    record_message(session, chat_id, Side.AGENT, "a simulated message from the agent", last_written_at)


def _come_and_go(session: Session, now: datetime, dice: random.Random) -> Counter[str]:
    if dice.random() >= CHANCE_THAT_AN_AGENT_COMES_OR_GOES:
        return Counter()
    agents = _simulated_agents(session)
    agent_id = dice.choice(sorted(agents))
    if not agents[agent_id]:
        agent_online(session, agent_id)
        return Counter({"agents came": 1})
    if sum(agents.values()) > AGENTS // 2:
        agent_offline(session, agent_id)
        return Counter({"agents went": 1})
    return Counter()


def _join(session: Session, now: datetime, dice: random.Random) -> Counter[str]:
    join_queue(session, f"{NAME}user-{dice.getrandbits(40):010x}", now)
    return Counter({"users joined": 1})


def _give_up(session: Session, now: datetime, dice: random.Random) -> Counter[str]:
    if dice.random() >= CHANCE_THAT_SOMEBODY_GIVES_UP_WAITING:
        return Counter()
    waiting = select(QueueEntry.user_id).where(
        QueueEntry.state == EntryState.WAITING, QueueEntry.user_id.startswith(NAME)
    )
    last = session.scalar(waiting.order_by(QueueEntry.joined_at.desc()).limit(1))
    return Counter({"users gave up": int(leave_queue(session, last, now))}) if last else Counter()


def _active_chats(session: Session) -> list[ActiveChat]:
    active = select(Chat.id, Chat.user_id, Chat.last_sender).where(ACTIVE, Chat.user_id.startswith(NAME))
    return [ActiveChat(*row) for row in session.execute(active)]


def _go_on(session: Session, chat: ActiveChat, now: datetime, dice: random.Random) -> Counter[str]:
    if chat.next_sender == Side.USER and _is_quiet(chat.user_id):
        return Counter()
    if chat.last_sender is not None and dice.random() < CHANCE_THAT_THE_CHAT_IS_DONE:
        return Counter({"chats ended": int(end_chat(session, chat.id, now, by=chat.next_sender))})
    if dice.random() < CHANCE_THAT_SOMEBODY_WRITES:
        return _write(session, chat, now)
    return Counter()


def _write(session: Session, chat: ActiveChat, now: datetime) -> Counter[str]:
    try:
        record_message(session, chat.id, chat.next_sender, f"a simulated message from the {chat.next_sender}", now)
    except ChatEnded:  # it has timed out meanwhile
        return Counter()
    return Counter({"messages": 1})


def _is_quiet(user_id: str) -> bool:
    return int(user_id.rpartition("-")[2], 16) % ONE_QUIET_USER_IN == 0


def _simulated_agents(session: Session) -> dict[str, bool]:
    agents = select(Agent.id, Agent.is_online).where(Agent.id.startswith(NAME))
    return dict(session.execute(agents).all())


def _sentence(done: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(done.items()) if number) or "nothing was possible"


def _stop_on_signals() -> Event:
    stop = Event()
    set_it: Callable[..., None] = lambda *_: stop.set()  # noqa: E731 - a signal handler is given two arguments
    signal.signal(signal.SIGTERM, set_it)
    signal.signal(signal.SIGINT, set_it)
    return stop


if __name__ == "__main__":
    main()
