"""Commands that are forked from a process with imported modules are like those that a shell starts."""

import os
import signal
import subprocess

import pytest

from tests.support.eventually import eventually
from tests.support.fleet import ROOT, executed
from tests.support.forked import BIN, Forked

pytestmark = pytest.mark.crash


@pytest.fixture
def environ(environment):
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("words", [["jobs", "--json"], ["jobs", "--nonsense"], ["check"]], ids=" ".join)
def test_it_says_and_ends_as_an_executed_one(words, environ, tmp_path):
    said = []
    for launch in (Forked, executed):
        with (tmp_path / "output").open("wb") as output:
            status = launch([str(BIN / "rota"), *words], environ=environ, cwd=ROOT, output=output).wait(60)
        said.append((status, (tmp_path / "output").read_text()))

    assert said[0] == said[1]


@pytest.mark.timeout(60)
def test_it_has_a_session_and_a_folder_and_only_it_has_its_output(environ, tmp_path):
    reading, writing = os.pipe()
    with open(writing, "wb") as output:
        worker = Forked([str(BIN / "rota"), "worker"], environ=environ, cwd=tmp_path, output=output)

    assert (os.getpgid(worker.pid), os.getsid(worker.pid)) == (worker.pid, worker.pid)
    eventually(lambda: os.readlink(f"/proc/{worker.pid}/cwd") == str(tmp_path))
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0)
    worker.kill()

    assert worker.wait(10) == worker.poll() == -signal.SIGKILL
    with open(reading, "rb") as said:
        said.read()  # it ends only if no other process can write
