"""``rota up`` as a real process on a terminal of its own: it starts, restarts programs, and leaves no process."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import psutil
import pytest

from core.cli.environment import read_env
from core.embedded import temporary_folder
from tests.support.emitted import logged
from tests.support.eventually import eventually
from tests.support.service import free_port

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
ROTA = str(Path(sysconfig.get_path("scripts")) / "rota")
#: The usual options of ``rota up``.
UP = (ROTA, "up", "--processes", "2", "--threads", "2")
UP_WITHIN = 60
GONE_WITHIN = 20
CTRL_C = b"\x03"


class Up:
    """A ``rota up`` in its folder, with its terminal, and with all processes that it was ever seen to have."""

    def __init__(self, folder: Path, *words: str, command: Sequence[str] = UP, **environ: str) -> None:
        self.folder = folder
        self.output = b""
        self.seen: dict[int, psutil.Process] = {}
        self._terminal, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [*command, *words],
            cwd=folder,
            env=environment(**{"ROTA_METRICS_PORT": "0", "ROTA_WEB_PORT": "0", **environ}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=own_the_terminal,
        )
        os.close(terminal)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # EIO: no process has the terminal any more
            while block := os.read(self._terminal, 4096):
                self.output += block

    @property
    def log(self) -> str:
        """The text that ``rota up`` has printed."""
        return self.output.decode(errors="replace")

    def logged(self, name: str) -> list[dict[str, Any]]:
        """Return the events called ``name`` from the log, which is JSON. A typed Ctrl-C is shown before the next
        line.
        """
        return list(logged(self.log.replace("^C", ""), name))

    def look(self) -> list[psutil.Process]:
        """Return the living processes of ``rota up``, and remember them."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            self.seen |= {process.pid: process for process in [root, *root.children(recursive=True)]}
        return [process for process in self.seen.values() if is_alive(process)]

    def of(self, word: str) -> list[psutil.Process]:
        """Return the living processes with ``word`` in the command line, without children of the same program."""
        found = [process for process in self.look() if word in command_line(process)]
        pids = {process.pid for process in found}
        return [process for process in found if process.ppid() not in pids]

    def wait_until_up(self) -> "Up":
        """Wait until the workers and the scheduler are alive according to the ledger."""
        eventually(lambda: self.ended() or "Rota is up" in self.log, within=UP_WITHIN)
        assert not self.ended(), self.log
        eventually(lambda: self.rota("check", "--live").returncode == 0, within=UP_WITHIN, every=0.3)
        self.look()
        return self

    def rota(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in another terminal. The command finds the servers by itself."""
        return subprocess.run(
            [ROTA, *words],
            cwd=self.folder,
            env=environment(**environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def type(self, keys: bytes) -> None:
        """Type on the terminal of ``rota up``."""
        self.look()
        os.write(self._terminal, keys)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until_gone(self) -> int:
        """Wait until ``rota up`` and all processes that it was seen to have are gone. Return the exit status of ``rota
        up``.
        """
        status = self.process.wait(GONE_WITHIN + 30)
        try:
            eventually(lambda: not self.look(), within=GONE_WITHIN)
        except AssertionError:
            raise AssertionError(f"left: {[command_line(process) for process in self.look()]}\n{self.log}") from None
        return status

    def end(self) -> None:
        """Kill all processes of ``rota up``, whatever the outcome of the test."""
        for process in self.look():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)
        with suppress(OSError):
            os.close(self._terminal)


def own_the_terminal() -> None:
    """Make the pseudo-terminal on stdin this session's controlling terminal, so that Ctrl-C reaches its processes."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process without the variables that name servers."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("ROTA_", "PROMETHEUS_"))}
    return {name: value for name, value in ours.items() if name not in {"DATABASE_URL", "REDIS_URL"}} | more


def is_alive(process: psutil.Process) -> bool:
    """Zombies whose parent does not wait for them do not count as living processes."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder outside pytest's own: other accounts, such as PostgreSQL's, cannot enter pytest's folder."""
    with temporary_folder("rota-up-") as name:
        yield Path(name)


@pytest.fixture
def start_up(folder: Path) -> Iterator[Callable[..., Up]]:
    """Yield a function that starts ``rota up`` in the test's folder."""
    started: list[Up] = []

    def start(*words: str, **how: Any) -> Up:
        started.append(Up(folder, *words, **how))
        return started[-1]

    yield start
    for up in started:
        up.end()


def runs(up: Up) -> list[dict[str, Any]]:
    """Return the ledger's runs as the command line shows them."""
    listed = up.rota("runs", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def test_comes_up_works_and_ends_with_ctrl_c_and_keeps_its_data(start_up, folder):
    up = start_up().wait_until_up()
    done = up.rota("run", "prune-runs", "--wait", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    assert (folder / ".rota" / "env").stat().st_mode & 0o777 == 0o600
    left = read_env(folder / ".rota")
    assert len(up.of("dramatiq")) == 2
    assert len(up.of("periodiq")) == 1

    up.type(CTRL_C)

    assert up.wait_until_gone() == 0
    assert "Traceback" not in up.log
    assert not (folder / ".rota" / "env").exists()
    assert "DATABASE_URL is not set" in up.rota("runs").stderr

    again = start_up().wait_until_up()
    assert int(done.stdout) in {run["id"] for run in runs(again)}
    assert read_env(folder / ".rota") == left
    again.process.send_signal(signal.SIGTERM)
    assert again.wait_until_gone() == 0


def test_a_shell_that_has_read_its_words_can_start_it_again(start_up, folder):
    up = start_up().wait_until_up()
    read = read_env(folder / ".rota")
    assert set(read) == {"DATABASE_URL", "REDIS_URL"}

    second = up.rota("up", **read)

    assert second.returncode == 1
    assert f"is already being served by process {up.process.pid}" in second.stderr
    up.type(CTRL_C)
    assert up.wait_until_gone() == 0
    again = start_up(**read).wait_until_up()
    assert len(again.of("redis-server")) == len(again.of("postgres -D")) == 1


def test_make_run_works_in_a_folder_whose_name_has_a_space():
    with temporary_folder("rota up ") as name:
        folder = Path(name)
        for file in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / file, folder)
        (folder / ".venv").mkdir()
        for entry in Path(sys.prefix).iterdir():
            (folder / ".venv" / entry.name).symlink_to(entry)
        (folder / ".venv" / ".ready").unlink(missing_ok=True)
        (folder / ".venv" / ".ready").touch()
        up = Up(folder, command=["make", "run"], ROTA_WEB_PORT=free_port())
        try:
            up.wait_until_up()
            assert_logs_in_by_its_link(up)

            assert (folder / ".rota" / "uploads").is_dir()
            assert up.of("plugins.customer_service.simulation")
            assert up.of("plugins.mail.simulation")
            up.type(CTRL_C)
            up.wait_until_gone()
        finally:
            up.end()


def assert_logs_in_by_its_link(up):
    """Check that the printed link logs a browser in, and that the service is healthy."""
    (address, secret) = re.search(r"log in +(http://127.0.0.1:\d+)/login\?link=(\w+)", up.log).groups()
    eventually(lambda: answers(f"{address}/health"), within=UP_WITHIN)
    browser = build_opener(HTTPCookieProcessor())
    asked = Request(f"{address}/login", f"secret={secret}".encode(), {"Sec-Fetch-Site": "same-origin"})
    with suppress(HTTPError):  # only the login is tested, not the page after it
        browser.open(asked, timeout=30).close()
    with browser.open(f"{address}/api/v1/me", timeout=30) as answer:
        assert json.load(answer)["role"] == "admin"


def answers(url):
    """Return whether a request of this URL gets the status 200."""
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_killed_worker_is_replaced_and_the_others_go_on(start_up):
    up = start_up().wait_until_up()
    parents = up.of("dramatiq core.main")
    victim = parents[0].children()[0]
    bystander = parents[1].children()[0]

    victim.kill()

    eventually(lambda: "supervisor.restarting" in up.log)
    eventually(lambda: len(up.of("dramatiq core.main")) == 2 and parents[0] not in up.of("dramatiq"))
    assert is_alive(bystander)
    assert up.rota("run", "prune-runs", "--wait", "--timeout", "30").returncode == 0


@pytest.mark.parametrize(
    ("word", "name"), [("periodiq core.main", "scheduler"), ("redis-server", "redis"), ("postgres -D", "postgres")]
)
def test_whatever_dies_is_started_again(start_up, word, name):
    up = start_up().wait_until_up()
    (before,) = up.of(word)

    before.kill()

    eventually(lambda: f"{name} ended" in up.log)
    eventually(lambda: up.of(word) and before not in up.of(word))
    done = eventually_succeeds(up)
    assert done.returncode == 0, done.stderr + up.log


def eventually_succeeds(up: Up) -> subprocess.CompletedProcess[str]:
    """Return the first run that the command line could request after an outage."""

    def attempt() -> subprocess.CompletedProcess[str] | None:
        done = up.rota("run", "prune-runs", "--wait", "--timeout", "30")
        return done if done.returncode == 0 else None

    return eventually(attempt, every=0.5)


def test_what_is_also_run_is_started_again_unless_it_is_done(start_up, folder):
    up = start_up("--also", "sh -c 'echo x >> done'", "--also", "sh -c 'echo x >> failed; exit 3'").wait_until_up()

    eventually(lambda: (folder / "failed").read_text().count("x") >= 2)
    assert (folder / "done").read_text().count("x") == 1
    up.type(CTRL_C)
    assert up.wait_until_gone() == 0


@pytest.mark.parametrize("when", ['"server": "postgres"', '"server": "redis"', "Rota is up"])
def test_ctrl_c_twice_during_the_start_leaves_nothing(start_up, when):
    up = start_up(ROTA_LOG_FORMAT="json")
    eventually(lambda: when in up.log or up.ended(), within=UP_WITHIN, every=0.01)

    up.type(CTRL_C)
    up.type(CTRL_C)

    assert up.wait_until_gone() == 0
    assert "Traceback" not in up.log
    ends = [name for name in ("up.interrupted", "up.stopped") for _ in up.logged(name)]
    assert len(ends) == 1
    assert ends == ["up.interrupted"] or "postgres" not in when


def test_its_log_tells_of_its_start_and_its_end(start_up, folder):
    up = start_up("--also", "true", ROTA_LOG_FORMAT="json").wait_until_up()
    eventually(lambda: up.logged("supervisor.finished"))
    up.type(CTRL_C)
    assert up.wait_until_gone() == 0

    started = [(line["server"], Path(line["data"]).name) for line in up.logged("up.starting")]
    assert started == [("postgres", "postgres"), ("redis", "redis")]
    assert [line["program"] for line in up.logged("supervisor.finished")] == ["true"]
    assert [line["seconds"] for line in up.logged("up.stopping")] == [30]
    assert len(up.logged("up.stopped")) == 1


def test_a_second_ctrl_c_does_not_wait_for_what_will_not_end(start_up, folder):
    stubborn = "sh -c 'trap \"\" TERM; touch deaf; while :; do sleep 1; done'"
    up = start_up("--also", stubborn, "--grace", "120").wait_until_up()
    eventually((folder / "deaf").exists)

    up.type(CTRL_C)
    eventually(lambda: "stopping; waits up to" in up.log)
    up.type(CTRL_C)

    assert up.wait_until_gone() == 0
    assert "supervisor.killing" in up.log


def test_a_sigkill_leaves_nothing_after_a_few_seconds_and_the_next_one_starts(start_up):
    up = start_up().wait_until_up()
    assert len(up.look()) > 10

    up.process.kill()

    assert up.wait_until_gone() == -signal.SIGKILL
    again = start_up().wait_until_up()
    assert again.rota("run", "prune-runs", "--wait", "--timeout", "30").returncode == 0


def test_the_next_one_starts_at_once_after_a_sigkill(start_up):
    up = start_up().wait_until_up()

    up.process.kill()
    up.process.wait()
    again = start_up().wait_until_up()

    assert up.wait_until_gone() == -signal.SIGKILL
    assert again.rota("run", "prune-runs", "--wait", "--timeout", "30").returncode == 0


def test_a_second_one_in_the_same_folder_says_who_is_there(start_up):
    up = start_up().wait_until_up()

    second = up.rota("up")

    assert second.returncode == 1
    assert f"is already being served by process {up.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert up.rota("check", "--live").returncode == 0  # the file with its URLs still exists
