"""Logging never blocks work: if the reader of the log hangs or ends, lines are dropped and counted."""

import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from core.observability import logs, sink
from core.observability.events import ProcessStuck, emit
from core.observability.sink import Sink
from tests.support.emitted import logged
from tests.support.eventually import eventually

NO_PROGRESS = ProcessStuck(15, "here.py:1 in wait")


class Blocked:
    """A stream that blocks until the test releases it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.text = ""

    def write(self, text: str) -> None:
        self.gate.wait()
        self.text += text

    def flush(self) -> None: ...


class Gone(Blocked):
    """A stream whose reader can end and return."""

    is_gone = True

    def write(self, text: str) -> None:
        if self.is_gone:
            raise BrokenPipeError
        self.text += text


class Dropped:
    lines = 0

    def __call__(self, lines: int) -> None:
        self.lines += lines


@pytest.fixture
def stream() -> Iterator[Blocked]:
    stream = Blocked()
    yield stream
    stream.gate.set()


@pytest.fixture
def dropped() -> Dropped:
    return Dropped()


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"})


def test_a_reader_that_hangs_blocks_nobody(stream, dropped, monkeypatch):
    monkeypatch.setattr(sink, "MOST_WAITING", 1000)
    handler = Sink(stream, dropped)

    for number in range(500):
        handler.handle(record(f"line {number}"))

    assert 300 < dropped.lines < 500
    stream.gate.set()
    eventually(lambda: f"{dropped.lines} lines were dropped" in stream.text, within=10)
    assert stream.text.startswith("line 0\n")
    eventually(lambda: stream.text.endswith(f"line {499 - dropped.lines}\n"), within=10)


def test_a_reader_that_went_away_is_told_how_much_it_missed(dropped):
    stream = Gone()
    handler = Sink(stream, dropped)
    handler.setFormatter(logs.formatter("json"))
    handler.handle(record("lost"))
    eventually(lambda: dropped.lines == 1, within=10)

    stream.is_gone = False
    handler.handle(record("back"))

    (told,) = eventually(lambda: list(logged(stream.text, "log.dropped")), within=10)
    assert (told["lines"], told["level"]) == (1, "warning")
    assert "1 lines were dropped" in told["text"]
    assert len(list(logged(stream.text, "back"))) == 1


def test_a_thread_that_cannot_be_had_is_asked_for_again(dropped, monkeypatch):
    stream = Blocked()
    stream.gate.set()
    handler = Sink(stream, dropped)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        handler.handle(record("first"))
    handler.handle(record("second"))

    eventually(lambda: stream.text == "first\nsecond\n", within=10)


PROGRAM = """
import logging, os, sys
from core.observability import logs
logs.configure("json")
for number in range(2000):
    logging.getLogger("x").info("line %s", number)
sys.stderr.close()
logging.getLogger("x").info("after stderr was closed")
if os.fork() == 0:
    logging.getLogger("x").info("from a child")
    logs.flush()
    os._exit(0)
os.wait()
print("worked")
"""


def test_all_lines_of_a_process_that_ends_are_written_also_of_a_fork_and_after_stderr_was_closed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "worked\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 2002
    assert any("from a child" in line for line in lines)
    assert any("after stderr was closed" in line for line in lines)


def test_a_process_whose_reader_hangs_works_and_ends_all_the_same():
    reading, writing = os.pipe()
    program = PROGRAM.replace("range(2000)", "range(20000)")

    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60, check=True
    )

    assert done.stdout == "worked\n"
    os.close(reading)
    os.close(writing)


def test_lines_of_several_processes_on_one_pipe_stay_whole_though_it_is_full():
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    program = PROGRAM.replace("line %s", "line %s" + "." * 300).replace("range(2000)", "range(20000)")
    program = program.partition("sys.stderr.close()")[0]
    writers = [subprocess.Popen([sys.executable, "-c", program], stderr=writing) for _ in range(3)]
    os.close(writing)

    text = b"".join(iter(lambda: os.read(reading, 5000), b"")).decode()

    assert [writer.wait(10) for writer in writers] == [0, 0, 0]
    os.close(reading)
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) > 3000


class Clogged(logging.Handler):
    """A handler of a plugin that waits for ever and holds its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.gate.wait()


def test_an_event_reaches_the_log_though_another_handler_waits_for_ever(dropped, monkeypatch):
    stream, clogged = Gone(), Clogged()
    stream.is_gone = False
    handler = Sink(stream, dropped)
    handler.setFormatter(logs.formatter("json"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [clogged, handler])
    waiting = threading.Thread(target=emit, args=[NO_PROGRESS], daemon=True)
    waiting.start()

    logs.emit_unblocked(NO_PROGRESS)
    logs.flush()

    (told,) = logged(stream.text, "process.stuck")
    assert (told["level"], told["logger"], told["seconds"]) == ("error", "rota.process", 15)
    assert waiting.is_alive()
    clogged.gate.set()
    waiting.join(10)


def test_a_thread_that_was_interrupted_while_it_logged_keeps_no_other_from_logging(dropped):
    stream = Gone()
    stream.is_gone = False
    handler = Sink(stream, dropped)

    holder = threading.Thread(target=handler.acquire)  # the thread ends without releasing the lock
    holder.start()
    holder.join(10)
    others = [threading.Thread(target=handler.handle, args=[record("on")], daemon=True) for _ in range(2)]
    for other in others:  # both at once, since one of them may get the id of the ended thread
        other.start()
    for other in others:
        other.join(5)

    handler.flush()
    assert stream.text == "on\non\n"


def test_lines_of_many_threads_are_all_written_by_one_thread(dropped):
    stream, barrier = Gone(), threading.Barrier(8)
    stream.is_gone = False
    handler = Sink(stream, dropped)

    def log(number: int) -> None:
        barrier.wait(10)
        for line in range(500):
            handler.handle(record(f"{number}:{line}"))

    threads = [threading.Thread(target=log, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    handler.flush(30)

    lines = stream.text.splitlines()
    assert sorted(lines) == sorted(f"{number}:{line}" for number in range(8) for line in range(500))
    for number in range(8):
        own = [line for line in lines if line.startswith(f"{number}:")]
        assert own == [f"{number}:{line}" for line in range(500)]
    assert dropped.lines == 0


def test_a_line_that_cannot_be_formatted_says_so(dropped):
    stream = Blocked()
    stream.gate.set()
    broken = logging.makeLogRecord({"name": "jobs", "msg": "%d", "args": ("no number",)})

    Sink(stream, dropped).handle(broken)

    eventually(lambda: stream.text == "jobs: a line could not be formatted: TypeError\n", within=10)
