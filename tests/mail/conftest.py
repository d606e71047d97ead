"""A database for all tests of this folder. It is emptied after each test, since a new database for each takes much
longer.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mail_world import Mailroom
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from stored_mail import StoredMail

from core.testing import RunJob
from plugins.mail.models import Base
from plugins.mail.settings import MailSettings
from plugins.mail.store import LocalStore
from tests.support.imap_server import ImapServer, serving
from tests.support.plugin_database import created, emptied

TABLES = [*Base.metadata.tables, "rota_runs", "rota_key_schedules", "rota_key_schedule_log", "rota_limits"]
NAME, CRASHED = "test_mail", "test_mail_crashed"
PASSWORD = "sesame"


@pytest.fixture(scope="session")
def shared_url(template: str) -> Iterator[str]:
    with created(template, NAME) as url:
        yield url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, template: str, shared_url: str) -> Iterator[str]:
    """Yield the URL of a database that has every table, with empty tables of this plugin. A test with real processes
    gets a database of its own.
    """
    is_crash = request.node.get_closest_marker("crash")
    with created(template, CRASHED) if is_crash else emptied(shared_url, TABLES) as url:
        yield url


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that sets settings of the plugin: ``configure(max_bytes="5000")``."""

    def set_them(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(MailSettings.prefix + name.upper(), value)
        MailSettings.forget()

    yield set_them
    MailSettings.forget()


@pytest.fixture
def server() -> Iterator[ImapServer]:
    """Yield an IMAP server that the test controls."""
    with serving() as running:
        yield running


@pytest.fixture
def mailroom(
    server: ImapServer, session: Session, run_job: RunJob, tmp_path: Path, configure: Callable[..., None]
) -> Mailroom:
    """Yield a service with a store and a secret, and with functions that add accounts of ``server`` and poll them."""
    for folder in ("store", "secrets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "secrets" / "ann").write_text(f"{PASSWORD}\n")
    configure(store=f"file://{tmp_path / 'store'}", secrets_dir=str(tmp_path / "secrets"), read_seconds="5")
    return Mailroom(server, session, run_job, tmp_path)


@pytest.fixture
def stored_mail(database: Engine, tmp_path: Path, configure: Callable[..., None]) -> StoredMail:
    """Return functions that make accounts and messages in a local store, which the jobs use too."""
    root = tmp_path / "store"
    root.mkdir()
    configure(store=f"file://{root}")
    return StoredMail(database, LocalStore(root))
