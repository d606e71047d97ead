"""The simulation's server and accounts: messages that arrive there are polled and processed like any others."""

import os
import random
import signal
import subprocess
import sys

import pytest
from sqlalchemy import text

from plugins.mail import simulation
from plugins.mail.jobs import poll_mailbox, process_email
from tests.support.eventually import eventually

FIRST_POLL = """
    SELECT run.id FROM rota_runs AS run JOIN mail_accounts AS account ON run.key = account.id::text
    WHERE run.job = 'poll-mailbox' AND account.folder = 'support' ORDER BY run.id LIMIT 1
"""


@pytest.fixture
def configured(tmp_path, configure, monkeypatch):
    (tmp_path / "store").mkdir()
    configure(store=f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MAIL_SECRET_SIMULATED", simulation.PASSWORD)


def test_what_arrives_is_polled_and_processed(configured, database, run_job):
    dice = random.Random(20261128)
    with simulation.server() as port, simulation.mailboxes(port) as client:
        assert simulation.has_accounts(database, port)
        assert simulation.has_accounts(database, port)
        for _ in range(12):
            client.append("support", "", "", simulation.message(dice))
        with database.connect() as connection:
            run_id = connection.scalar(text(FIRST_POLL))
        run_job.executor.execute(poll_mailbox, run_id)
        run = run_job.row(run_id)

    assert run.result["stored"] == 12, run.error
    with database.connect() as connection:
        message_ids = list(connection.scalars(text("SELECT id FROM mail_messages ORDER BY id")))
    for message_id in message_ids:
        assert run_job(process_email, args={"message_id": message_id}).result["processed"] == 1


def test_it_runs_until_it_is_told_to_stop_and_takes_its_server_with_it(configured, shared_url, database):
    command = [sys.executable, "-m", "plugins.mail.simulation"]
    with subprocess.Popen(
        command, env={**os.environ, "DATABASE_URL": shared_url}, stderr=subprocess.PIPE, text=True
    ) as running:
        eventually(lambda: count(database) == len(simulation.FOLDERS))
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=60)

    assert running.returncode == 0, told
    assert "stopped" in told


def count(database) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM mail_accounts")) or 0)


def test_without_a_database_it_says_so():
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}

    done = subprocess.run(
        [sys.executable, "-m", "plugins.mail.simulation"], env=environ, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr.strip()) == (
        2, "DATABASE_URL is not set; the simulation needs a database"
    )  # fmt: skip
