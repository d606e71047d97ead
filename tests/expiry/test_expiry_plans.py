"""A sweep reads only due rows, however large the table is, according to PostgreSQL's own plans."""

import json
from collections.abc import Iterator

import pytest
from expiry_world import BEFORE, CODES, COUPONS, NOON, POINTS, TASKS, Subject
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from plugins.expiry import spend_points

ROWS, DUE, USERS = 100_000, 40, 20_000
END = f"timestamptz '{NOON.isoformat()}' + (n - {DUE}) * interval '1 minute'"
MADE = f"timestamptz '{BEFORE.isoformat()}'"
SERIES = f"generate_series(1, {ROWS}) AS n"
CODE = f"(code, user_id, ends_at) SELECT 'C' || n, 'user', {END} FROM {SERIES}"
FILL = {
    TASKS: [f"INSERT INTO expiry_tasks (owner_id, opened_at, deadline_at) SELECT 'owner', {MADE}, {END} FROM {SERIES}"],
    COUPONS: [f"INSERT INTO expiry_coupons {CODE}"],
    CODES: [f"INSERT INTO expiry_invitation_codes {CODE}"],
    POINTS: [
        f"INSERT INTO expiry_point_balances SELECT n, {ROWS} FROM generate_series(0, {USERS - 1}) AS n",
        f"""INSERT INTO expiry_point_lots (user_id, points, remaining, granted_at, expires_at)
            SELECT n % {USERS}, 5, 5, {MADE}, {END} FROM {SERIES}""",
    ],
}
#: The most blocks that one statement for 40 rows may read. To read the table would take 700 or more.
FEW_BLOCKS = 600


@pytest.fixture
def plans(database: Engine) -> Iterator[list[dict]]:
    """Return the plan of every statement that is executed, with the numbers of rows that it read."""
    taken: list[dict] = []

    def explain(_connection, cursor, statement, parameters, _context, _many):
        if statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "INSERT")):
            cursor.execute("SAVEPOINT before_explain")
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            ((plan,),) = cursor.fetchall()
            taken.append(json.loads(plan)[0] if isinstance(plan, str) else plan[0])
            cursor.execute("ROLLBACK TO SAVEPOINT before_explain")

    event.listen(database, "before_cursor_execute", explain)
    yield taken
    event.remove(database, "before_cursor_execute", explain)


@pytest.mark.parametrize("subject", FILL, ids=lambda subject: subject.job.name)
def test_no_statement_of_a_sweep_reads_more_than_what_is_due(subject: Subject, database: Engine, plans: list[dict]):
    fill(database, subject)
    plans.clear()

    with Session(database) as session:
        assert subject.sweep(session)[subject.word] == DUE

    nodes = [node for plan in plans for node in walk(plan["Plan"])]
    assert {node["Node Type"] for node in nodes} >= {"Index Scan"} or any("Index Name" in node for node in nodes)
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    assert f"{subject.table}_due" in {node.get("Index Name") for node in nodes}
    assert f"{subject.table}_broken" in {node.get("Index Name") for node in nodes}
    touched = [plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans]
    assert max(touched) < FEW_BLOCKS, touched


@pytest.mark.parametrize("subject", FILL, ids=lambda subject: subject.job.name)
def test_what_has_ended_is_not_read_again(subject: Subject, database: Engine, plans: list[dict]):
    fill(database, subject)
    with Session(database) as session:
        subject.sweep(session)
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"VACUUM {subject.table}")
        plans.clear()
        assert subject.sweep(session)[subject.word] == 0

    touched = [plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans]
    assert max(touched) < 20, touched


def test_spending_reads_the_users_own_lots(database: Engine, plans: list[dict]):
    fill(database, POINTS)
    plans.clear()

    with Session(database) as session:
        assert spend_points(session, "1", 7, NOON) == 5 * (ROWS // USERS) - 5 - 7  # one lot has ended

    nodes = [node for plan in plans for node in walk(plan["Plan"])]
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    assert "expiry_point_lots_of_user" in {node.get("Index Name") for node in nodes}


def fill(database: Engine, subject: Subject) -> None:
    with database.begin() as connection:
        for statement in FILL[subject]:
            connection.execute(text(statement))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def walk(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)
