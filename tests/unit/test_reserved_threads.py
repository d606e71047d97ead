"""Reserved threads: which messages may start, which messages may be fetched, and when a worker refuses to start."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from core import job
from core.transport import reserved_work_queue, work_queue
from core.transport.reservations import Occupancy, reservations, too_few
from core.transport.reserved_work_queue import ReservedWorkQueue
from core.transport.use_work_queue import UseWorkQueue
from core.transport.work_queue import STALLED_SECONDS, WorkQueue

HELP = [
    job("answer", queue="help", priority=5)(lambda run: None),
    job("tidy", queue="help")(lambda run: None),
    job("sweep", queue="upkeep")(lambda run: None),
]
RESERVED = reservations({"help": 2}, HELP)


@dataclass
class Item:
    """A fetched message."""

    name: str
    queue: str = "help"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> SimpleNamespace:
        return SimpleNamespace(queue_name=self.queue, actor_name=self.name, options=self.options, seconds=None)


class Process:
    """A process of eight threads, two of which are reserved, and its clock."""

    def __init__(self) -> None:
        self.queue = ReservedWorkQueue(8, RESERVED)
        self.now = 1000.0
        self.is_over = threading.Event()

    def fetch(self, name: str, queue: str = "help", most: int = 1000, **options: Any) -> int:
        """Fetch as a consumer does. Return the number of messages."""
        lane = self.queue.lane(queue)
        room = self.queue.reserve(lane)
        if room > most:
            self.queue.unreserve(lane, room - most)
        self.queue.put_all([Item(name, queue, options)] * min(room, most))
        return min(room, most)

    def put(self, name: str, queue: str = "help", **options: Any) -> None:
        """Give the threads a message that was not fetched."""
        self.queue.expect(queue)
        self.queue.put(Item(name, queue, options))

    def start(self) -> str | None:
        """Start a thread that takes an item and keeps it. Return the item's name, or None if no item may start."""
        taken: SimpleQueue[str | None] = SimpleQueue()

        def take() -> None:
            try:
                taken.put(self.queue.get(False).message.actor_name)
            except Empty:
                taken.put(None)
            else:
                self.is_over.wait(60)

        threading.Thread(target=take, daemon=True).start()
        return taken.get(timeout=10)

    def end_one(self) -> None:
        """Start a thread that takes an item and ends it."""

        def work() -> None:
            self.queue.get(False)
            self.queue.task_done()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)

    def start_all(self) -> list[str]:
        """Start every item that may start."""
        started = []
        while (name := self.start()) is not None:
            started.append(name)
        self.now += 1  # no thread has begun or ended an item recently
        return started


@pytest.fixture
def process(monkeypatch) -> Iterator[Process]:
    process = Process()
    clock = SimpleNamespace(monotonic=lambda: process.now)
    monkeypatch.setattr(work_queue, "time", clock)
    monkeypatch.setattr(reserved_work_queue, "time", clock)
    yield process
    process.is_over.set()


@pytest.mark.parametrize(
    ("upkeep", "urgent", "minor", "left"),
    [
        # the numbers of further messages of upkeep, of urgent messages and of minor messages that may start
        (0, 0, 0, (6, 8, 7)),
        (6, 0, 0, (0, 2, 1)),
        (6, 0, 1, (0, 1, 0)),
        (6, 1, 0, (0, 1, 1)),
        (6, 1, 1, (0, 0, 0)),
        (6, 2, 0, (0, 0, 0)),
        (5, 0, 2, (0, 1, 0)),
        (5, 3, 0, (0, 0, 0)),
        (0, 8, 0, (0, 0, 0)),
        (0, 0, 7, (0, 1, 0)),
        (3, 1, 1, (3, 3, 3)),
    ],
)
def test_what_may_start_beside_what_is_running(upkeep, urgent, minor, left):
    occupancy = Occupancy.of(8, RESERVED)
    occupancy.add("upkeep", upkeep, is_urgent=True)
    occupancy.add("help", urgent, is_urgent=True)
    occupancy.add("help", minor, is_urgent=False)

    may_start = occupancy.left("upkeep", is_urgent=True)
    assert (may_start, occupancy.left("help", is_urgent=True), occupancy.left("help", is_urgent=False)) == left


def test_each_of_several_queues_has_its_own_reserved_threads():
    occupancy = Occupancy.of(4, reservations({"help": 1, "upkeep": 2}, HELP))
    occupancy.add("help", 2, is_urgent=True)

    assert occupancy.shared_left == 0
    assert [occupancy.left(queue, is_urgent=True) for queue in ("help", "upkeep", "other")] == [0, 2, 0]


def test_of_one_reserved_thread_a_minor_message_takes_none():
    occupancy = Occupancy.of(2, reservations({"help": 1}, HELP))
    occupancy.add("upkeep", 1, is_urgent=True)

    assert (occupancy.left("help", is_urgent=False), occupancy.left("help", is_urgent=True)) == (0, 1)


def test_jobs_of_equal_priority_are_all_urgent():
    alike = [job(name, queue="help")(lambda run: None) for name in ("answer", "tidy")]
    reservation = reservations({"help": 2}, alike)["help"]

    assert all(reservation.is_urgent(each.name, 0) for each in alike)


def test_threads_take_the_oldest_message_that_may_start(process):
    for name, queue in [*[("sweep", "upkeep")] * 7, *[("tidy", "help")] * 2, ("answer", "help")]:
        process.put(name, queue)

    assert process.start_all() == [*["sweep"] * 6, "tidy", "answer"]


def test_a_request_of_high_priority_takes_the_last_reserved_thread_too(process):
    for _ in range(7):
        process.put("sweep", "upkeep")
    process.put("tidy", priority=5)
    process.put("tidy", priority=5)

    assert process.start_all() == [*["sweep"] * 6, "tidy", "tidy"]


def test_a_thread_that_becomes_free_takes_what_had_to_wait(process):
    for _ in range(7):
        process.put("sweep", "upkeep")
    process.end_one()

    assert process.start_all() == ["sweep"] * 6


def test_a_waiting_thread_is_woken_by_a_message_that_may_start():
    queue, taken = ReservedWorkQueue(8, RESERVED), []
    thread = threading.Thread(target=lambda: taken.append(queue.get().message.actor_name))
    thread.start()
    queue.expect("help")
    queue.put(Item("answer"))
    thread.join(10)

    assert taken == ["answer"]


def test_threads_of_a_closed_queue_end():
    queue = ReservedWorkQueue(8, RESERVED)
    for _ in range(7):
        queue.expect("upkeep")
        queue.put(Item("sweep", "upkeep"))
    assert [queue.get(False).message.actor_name for _ in range(6)] == ["sweep"] * 6
    queue.close()

    with pytest.raises(Empty):
        queue.get()
    assert queue.get_nowait().message.actor_name == "sweep"
    with pytest.raises(Empty):
        queue.get_nowait()


def test_others_fetch_no_more_than_they_may_start(process):
    assert process.fetch("sweep", "upkeep") == 6
    process.start_all()

    assert process.fetch("sweep", "upkeep") == 0
    assert not process.queue.has_room("upkeep")
    assert process.queue.has_room("help")


def test_for_the_last_reserved_thread_only_urgent_messages_are_fetched(process):
    process.fetch("sweep", "upkeep")
    process.start_all()
    lane = process.queue.lane("help")
    assert process.fetch("tidy") == 1
    assert lane.least_priority == 0
    process.start_all()

    assert process.fetch("answer") == 1
    assert lane.least_priority == 5
    assert lane.was_refused_room


def test_a_consumer_that_was_refused_room_is_woken_when_a_thread_it_may_take_is_free(process):
    process.fetch("sweep", "upkeep", most=5)
    process.start_all()
    woken: list[str] = []
    for queue in ("upkeep", "help"):
        process.queue.lane(queue).attach(lambda queue=queue: woken.append(queue))
    process.fetch("sweep", "upkeep")
    process.fetch("sweep", "upkeep")
    assert process.queue.lane("upkeep").was_refused_room

    process.end_one()

    assert woken[-1:] == ["upkeep"]


def test_messages_that_cannot_start_are_stalled_although_threads_are_free(process):
    for _ in range(7):
        process.put("sweep", "upkeep")
    process.start_all()
    lane = process.queue.lane("upkeep")
    assert process.queue.free == 2
    process.now += 2 * STALLED_SECONDS

    assert process.queue.is_stalled(lane)
    assert not process.queue.is_stalled(process.queue.lane("help"))
    assert [item.message.actor_name for item in process.queue.take_stalled(lane)] == ["sweep"]
    assert (lane.waiting, process.queue.qsize()) == (0, 0)


def test_a_message_that_has_just_come_is_not_stalled(process):
    process.put("answer")

    assert not process.queue.is_stalled(process.queue.lane("help"))


def test_runs_of_the_ledger_are_taken_for_threads_that_they_may_start_in(process):
    for _ in range(5):
        process.put("sweep", "upkeep")
    process.start_all()
    openings = process.queue.openings(["help", "upkeep"])

    assert taken(next(openings)) == (2, ["help"], {"answer"})
    process.put("answer")
    assert taken(next(openings)) == (1, ["help"], None)
    process.put("tidy")
    assert taken(next(openings)) == (1, ["help", "upkeep"], None)
    process.put("sweep", "upkeep")
    assert [opening.most for opening in process.queue.openings(["help", "upkeep"])] == [0, 0, 0]


def taken(opening):
    return opening.most, list(opening.queues), None if opening.jobs is None else set(opening.jobs)


@pytest.mark.parametrize(
    ("threads", "reserved", "least"),
    [(3, {"help": 2}, ""), (2, {"help": 2}, "at least 3"), (3, {"help": 2, "upkeep": 1}, "at least 4"), (1, {}, "")],
)
def test_one_thread_must_be_left_for_all_queues(threads, reserved, least):
    problem = too_few(threads, reservations(reserved, HELP).values())

    assert least in problem
    assert bool(problem) == bool(least)


class Worker:
    """A worker that is starting."""

    def __init__(self, threads: int, *queues: str) -> None:
        self.worker_threads = threads
        self.consumer_whitelist = set(queues)
        self.work_queue: Any = None


BROKER = SimpleNamespace(begin_work=lambda work_queue: None, get_declared_queues=lambda: {"help", "upkeep"})


@pytest.mark.parametrize(
    ("worker", "kind"),
    [(Worker(8), ReservedWorkQueue), (Worker(8, "help"), ReservedWorkQueue), (Worker(1, "upkeep"), WorkQueue)],
)
def test_only_a_worker_that_serves_the_queue_reserves_threads(worker, kind):
    UseWorkQueue(RESERVED).before_worker_boot(BROKER, worker)

    assert type(worker.work_queue) is kind


def test_a_worker_with_too_few_threads_does_not_start():
    with pytest.raises(SystemExit, match=r"rota: ROTA_RESERVED_THREADS reserves 2 threads .* has 2 in all; give it at"):
        UseWorkQueue(RESERVED).before_worker_boot(BROKER, Worker(2))
