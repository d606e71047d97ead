"""When a program that has died is started again."""

import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.observability.events import SupervisorGuardLost
from core.supervisor.guard import Guard
from core.supervisor.programs import in_words
from core.supervisor.supervisor import Supervisor
from tests.support.emitted import emitted


@dataclass
class World:
    """Signals, guard, channel and clock in one object: a wait moves the clock, and after a number of waits asks to
    stop.
    """

    waits_left: int
    #: The seconds after which a program's death ends a wait without a time-out.
    death_after: float = 3600.0
    now: float = 1000.0
    asked: int = 0
    pauses: list[float | None] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    sockets: tuple[()] = ()

    def hear(self) -> list[tuple[str, str]]:
        return []

    def wait(self, timeout_seconds: float | None, sockets: Any = ()) -> None:
        self.pauses.append(timeout_seconds)
        self.now += self.death_after if timeout_seconds is None else timeout_seconds
        self.waits_left -= 1
        self.asked = int(self.waits_left <= 0)

    def interrupting(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def watch(self, program: Any, farewell: signal.Signals, *, rank: int) -> None:
        self.events.append("watched")

    def forget(self, program: Any) -> None:
        self.events.append("forgotten")

    def supervisor(self) -> Supervisor:
        return Supervisor(self, self, self, lambda: self.now)  # type: ignore[arg-type]


@dataclass
class Mortal:
    """A program that runs for a given time after each start."""

    world: World
    lives_seconds: float
    name: str = "mortal"
    pid: int | None = 1
    starts: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.starts.append(self.world.now)

    def is_running(self) -> bool:
        return self.world.now - self.starts[-1] < self.lives_seconds


def test_the_pause_before_the_next_start_doubles_up_to_half_a_minute():
    world = World(waits_left=14, death_after=0)
    supervisor = world.supervisor()
    supervisor.start(Mortal(world, lives_seconds=0))

    supervisor.keep_running()

    assert [pause for pause in world.pauses if pause is not None] == pytest.approx([1, 2, 4, 8, 16, 30, 30])


def test_a_program_that_lived_long_is_started_again_after_the_first_pause():
    world = World(waits_left=6)
    supervisor = world.supervisor()
    supervisor.start(Mortal(world, lives_seconds=3000))

    supervisor.keep_running()  # a wait without a time-out, which the death ends, and a pause, in turn

    assert world.pauses == [None, 1, None, 1, None, 1]


def test_what_cannot_be_started_again_is_tried_again():
    world = World(waits_left=4)
    supervisor = world.supervisor()
    program = Mortal(world, lives_seconds=0)
    supervisor.start(program)
    program.start = lambda: (_ for _ in ()).throw(OSError("no such file"))  # type: ignore[method-assign]

    supervisor.keep_running()

    assert world.pauses == [1, 2, 4, 8]


def test_the_guard_knows_who_is_alive():
    world = World(waits_left=3)
    supervisor = world.supervisor()
    supervisor.start(Mortal(world, lives_seconds=3000))

    supervisor.keep_running()

    assert world.events == ["watched", "forgotten", "watched", "forgotten"][: len(world.events)]
    assert len(world.events) >= 3


def test_a_guard_that_is_gone_is_said(caplog):
    world, guard = World(waits_left=1), Guard()
    guard._process.kill()
    guard._process.wait()

    guard.watch(Mortal(world, lives_seconds=1))

    assert emitted(caplog, "supervisor.guard_lost") == [SupervisorGuardLost("[Errno 32] Broken pipe")]
    guard.dismiss()


def test_a_status_is_told_in_words():
    assert in_words(3) == "status 3"
    assert in_words(-9) == "killed by SIGKILL"
