"""A worker whose database role has no rights, beside a worker whose role has them, as real processes."""

import uuid

import pytest
from sqlalchemy import make_url

from core import database
from tests.support.eventually import eventually

pytestmark = [pytest.mark.crash, pytest.mark.timeout(200)]

DONE = "SELECT count(*) AS n FROM rota_runs WHERE id = ANY(:ids) AND state = 'succeeded'"
GRANTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public",
)


@pytest.fixture
def role(make_fleet):
    """Return the fleet, and a role that may only connect to its database."""
    fleet = make_fleet(jobs="touch", environ={"ROTA_RESEND_SECONDS": "1"})
    name = f"nobody_{uuid.uuid4().hex[:8]}"
    do(fleet, f"CREATE ROLE {name} LOGIN")
    yield fleet, name
    fleet.stop()
    do(fleet, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def do(fleet, *statements: str) -> None:
    with database.autocommit(fleet.engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_worker_without_rights_says_what_to_grant_harms_nobody_and_works_once_it_is_granted(role):
    fleet, name = role
    url = make_url(fleet.postgres_url).set(username=name).render_as_string(hide_password=False)
    nobody = fleet.start("dramatiq", "core.main", "--processes", "1", "--threads", "4", DATABASE_URL=url)
    eventually(lambda: "process.not_registered" in fleet.logs())
    assert "the role lacks rights: GRANT " in fleet.logs()
    good = fleet.worker()

    ids = fleet.request("touch", 20)
    eventually(lambda: fleet.rows(DONE, ids=ids)[0].n == len(ids))
    assert {fleet.group_of(effect.pid).pid for effect in fleet.effects("touch")} == {good.pid}
    assert nobody.poll() is None

    fleet.terminate(good)
    do(fleet, *(f"{grant} TO {name}" for grant in GRANTS))
    more = fleet.request("touch", 5)
    eventually(lambda: fleet.rows(DONE, ids=more)[0].n == len(more))
    assert len(fleet.effects("touch")) == len(ids) + len(more)
