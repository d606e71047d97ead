"""Rows that contradict other rows, or have unusable values: each is named once per run, and stops no other row."""

from collections import Counter
from datetime import timedelta

import pytest
from customer_service_world import NOON
from sqlalchemy import text

from plugins.customer_service.archive import archive_inactive_chats, remove_left_entries
from plugins.customer_service.assignment import assign_batch, assign_waiting_users
from plugins.customer_service.timeout_warnings import warn_quiet_chats
from plugins.customer_service.timeouts import TIMEOUT, end_quiet_chats
from tests.support.emitted import emitted

MINUTE = timedelta(minutes=1)
MONTH = timedelta(days=30)
NO_DATES = ["infinity", "-infinity", "20000-01-01 00:00:00+00", "4000-01-01 00:00:00+00 BC"]
AGENTS, ENTRIES, CHATS = (f"customer_service_{name}" for name in ("agents", "queue_entries", "chats"))

REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
    CREATE TRIGGER refuse BEFORE %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def do(session):
    """Return a function that executes SQL and commits, as an older system or a person might."""

    def execute(statement, **values):
        session.execute(text(statement), values)
        session.commit()

    return execute


@pytest.fixture
def refuse(session, do):
    """Let the database refuse a statement for some rows."""
    yield lambda event, rows: do(REFUSE % (event, rows))
    session.rollback()
    do("DROP FUNCTION refuse CASCADE")


@pytest.fixture
def named(caplog):
    """Return how often the log has named each row since the last call, by table and id."""

    def count():
        events = emitted(caplog, "sweep.rows_refused")
        found = Counter((event.table, row_id) for event in events for row_id in event.ids.split(", "))
        caplog.clear()
        return found

    return count


def run(sweep, world, now, **options):
    """Run a sweep, and commit as the worker does."""
    counts = sweep(world.session, now, checkpoint=world.checkpoint, **options)
    world.session.commit()
    return counts


@pytest.mark.parametrize("wrong", [0, 1, 7])
def test_a_wrong_count_of_an_agent_keeps_no_chat_from_ending_and_is_corrected(world, do, named, wrong):
    world.agent("zoe", capacity=3)
    world.agent("yan", capacity=1)
    world.waiting(*"abcd", since=NOON - timedelta(seconds=9))
    world.assign()
    world.warns()
    do(f"UPDATE {AGENTS} SET current_chats = :wrong WHERE id = 'zoe'", wrong=wrong)

    counts = run(end_quiet_chats, world, NOON + TIMEOUT)

    assert (counts["ended"], counts["broken"]) == (4, 1)
    assert named() == {(AGENTS, "'zoe'"): 1}
    assert (world.get_agent("zoe").current_chats, world.get_agent("yan").current_chats) == (0, 0)
    assert run(end_quiet_chats, world, NOON + TIMEOUT)["broken"] == 0
    assert named() == {}


def test_a_wrong_count_is_corrected_while_the_chats_go_on(world, do, named):
    world.chat("ann", "zoe")
    do(f"UPDATE {AGENTS} SET current_chats = 5")

    run(end_quiet_chats, world, NOON)

    assert world.get_agent().current_chats == 1
    assert named() == {(AGENTS, "'zoe'"): 1}


def test_an_application_ends_a_chat_of_an_agent_whose_count_is_wrong(world, do):
    chat_id = world.chat()
    do(f"UPDATE {AGENTS} SET current_chats = 0")

    assert world.ends(chat_id) is True

    assert world.get_agent().current_chats == 0


def test_an_agent_whose_count_is_too_low_gets_nobody_above_the_capacity(world, do):
    world.chat("ann", "zoe")
    do(f"UPDATE {AGENTS} SET current_chats = 0")
    world.waiting("bob")

    assert world.assign() == 0
    assert world.pairs() == [("ann", "zoe")]


def test_an_entry_whose_user_has_a_chat_is_passed_over(world, do, named):
    world.chat("ann", "zoe")
    do(f"INSERT INTO {ENTRIES} (user_id, state, joined_at) VALUES ('bob', 'served', :now)", now=NOON)
    do(f"UPDATE {ENTRIES} SET user_id = 'ghost' WHERE user_id = 'ann'")
    do(f"INSERT INTO {ENTRIES} (user_id, joined_at) VALUES ('ann', :now)", now=NOON - timedelta(hours=1))
    world.agent("yan", capacity=5)
    world.waiting("cat", "dan")

    counts = run(assign_waiting_users, world, NOON)

    assert counts == {"assigned": 2, "broken": 1}
    assert named() == {(ENTRIES, "3"): 1}
    assert world.pairs()[1:] == [("cat", "yan"), ("dan", "yan")]


def test_an_entry_that_has_a_chat_already_is_passed_over(world, do, named):
    world.ends(world.chat("ann", "zoe"))
    do(f"UPDATE {ENTRIES} SET state = 'waiting'")
    world.waiting("bob")

    assert run(assign_waiting_users, world, NOON) == {"assigned": 1, "broken": 1}
    assert named() == {(ENTRIES, "1"): 1}
    assert world.pairs() == [("ann", "zoe"), ("bob", "zoe")]


@pytest.mark.parametrize("no_date", NO_DATES)
def test_an_entry_whose_time_is_no_date_is_passed_over(world, do, named, no_date):
    world.agent("zoe", capacity=5)
    world.waiting("ann", "bob")
    do(f"UPDATE {ENTRIES} SET joined_at = :no_date WHERE user_id = 'ann'", no_date=no_date)

    assert run(assign_waiting_users, world, NOON) == {"assigned": 1, "broken": 1}
    assert named() == {(ENTRIES, "1"): 1}
    assert world.pairs() == [("bob", "zoe")]


def test_a_single_batch_passes_over_an_entry_whose_time_is_no_date(world, do):
    world.agent("zoe", capacity=5)
    world.waiting("ann", "bob")
    do(f"UPDATE {ENTRIES} SET joined_at = '4000-01-01 BC' WHERE user_id = 'ann'")

    assert assign_batch(world.session, NOON) == 1


def test_many_broken_entries_at_the_head_keep_nobody_from_an_agent(world, do, named):
    world.agent("zoe", capacity=5)
    do(
        f"INSERT INTO {ENTRIES} (user_id, joined_at) SELECT 'old-' || n, '-infinity' FROM generate_series(1, 300) n",
    )
    world.waiting("ann", "bob")

    assert run(assign_waiting_users, world, NOON) == {"assigned": 2, "broken": 300}
    assert set(named().values()) == {1}


def test_entries_that_the_database_refuses_are_passed_over_and_the_others_keep_their_order(world, refuse, named):
    refuse(f"INSERT ON {CHATS}", "NEW.user_id LIKE 'bad-%'")
    world.agent("zoe", capacity=12)
    users = [f"good-{number:02}" for number in range(13)]
    world.waiting(*(f"bad-{number:02}" for number in range(25)), *users)

    assert run(assign_waiting_users, world, NOON) == {"assigned": 12, "broken": 25}
    assert named() == {(ENTRIES, str(number)): 1 for number in range(1, 26)}
    assert world.pairs() == [(user, "zoe") for user in users[:12]]


@pytest.mark.parametrize("no_date", NO_DATES)
@pytest.mark.parametrize("column", ["last_activity_at", "warned_at"])
def test_a_chat_whose_time_is_no_date_keeps_no_other_from_its_warning_and_its_end(world, do, named, column, no_date):
    world.agent("zoe", capacity=3)
    world.waiting(*"abc", since=NOON - timedelta(seconds=2))
    world.assign()
    do(f"UPDATE {CHATS} SET {column} = :no_date WHERE user_id = 'b'", no_date=no_date)

    assert run(warn_quiet_chats, world, NOON + MINUTE) == {"warned": 2, "left": 0, "broken": 1}
    assert named() == {(CHATS, "2"): 1}
    counts = run(end_quiet_chats, world, NOON + TIMEOUT)
    assert counts == {"ended": 2, "warned": 0, "left": 0, "broken": 1}
    assert named() == {(CHATS, "2"): 1}


def test_chats_that_the_database_refuses_to_end_keep_no_other_from_it(world, refuse, named):
    refuse(f"UPDATE ON {CHATS}", "NEW.state = 'ended' AND NEW.id % 2 = 0")
    world.agent("zoe", capacity=9)
    world.waiting(*"abcdefghi", since=NOON - timedelta(seconds=9))
    world.assign()
    world.warns()

    counts = run(end_quiet_chats, world, NOON + TIMEOUT, batch=4)

    assert counts == {"ended": 5, "warned": 0, "left": 0, "broken": 4}
    assert named() == {(CHATS, str(number)): 1 for number in (2, 4, 6, 8)}
    assert world.get_agent().current_chats == 4


def test_the_log_names_no_user(world, refuse, caplog):
    refuse(f"INSERT ON {CHATS}", "NEW.user_id = 'ann@example.org'")
    world.agent("zoe")
    world.waiting("ann@example.org")

    assert run(assign_waiting_users, world, NOON)["broken"] == 1

    assert [event.ids for event in emitted(caplog, "sweep.rows_refused")] == ["1"]
    assert "example.org" not in caplog.text


def archived(world):
    return sorted(world.session.execute(text("SELECT id, user_id FROM customer_service_archived_chats")).all())


def ended_chats(world, number, first=1):
    """Add so many chats with a message each. Their ids begin at ``first``."""
    world.agent("zoe", capacity=number)
    world.waiting(*(f"user-{n}" for n in range(number)), since=NOON - timedelta(seconds=number))
    world.assign()
    for chat_id in range(first, first + number):
        world.says(chat_id, "user", NOON)
        world.ends(chat_id)


def test_a_chat_whose_id_is_in_the_archive_keeps_no_other_from_it(world, do, named):
    ended_chats(world, 5)
    do("""INSERT INTO customer_service_archived_chats
          (id, user_id, agent_id, joined_at, started_at, last_activity_at, ended_at, end_reason, archived_at)
          SELECT 2, 'other', 'zoe', now(), now(), now(), now(), 'closed_by_user', now()""")

    counts = run(archive_inactive_chats, world, NOON + MONTH, batch=3)

    assert counts == {"archived": 4, "ended": 0, "left": 0, "broken": 1}
    assert named() == {(CHATS, "2"): 1}
    assert archived(world) == [(1, "user-0"), (2, "other"), (3, "user-2"), (4, "user-3"), (5, "user-4")]


def test_a_message_whose_id_is_in_the_archive_keeps_only_its_chat_from_it(world, do, named):
    ended_chats(world, 1)
    run(archive_inactive_chats, world, NOON + MONTH)
    ended_chats(world, 3, first=2)
    do("UPDATE customer_service_messages SET id = 1 WHERE chat_id = 3")

    assert run(archive_inactive_chats, world, NOON + MONTH)["broken"] == 1
    assert named() == {(CHATS, "3"): 1}
    assert [chat_id for chat_id, _ in archived(world)] == [1, 2, 4]


@pytest.mark.parametrize("no_date", NO_DATES)
def test_a_chat_whose_last_activity_is_no_date_keeps_no_other_from_the_archive(world, do, named, no_date):
    ended_chats(world, 3)
    do(f"UPDATE {CHATS} SET last_activity_at = :no_date WHERE id = 2", no_date=no_date)

    counts = run(archive_inactive_chats, world, NOON + MONTH)

    assert (counts["archived"], counts["broken"]) == (2, 1)
    assert named() == {(CHATS, "2"): 1}


@pytest.mark.parametrize("no_date", [*NO_DATES, None])
def test_an_entry_that_was_left_at_no_date_keeps_no_other_from_being_removed(world, do, named, no_date):
    do(
        f"INSERT INTO {ENTRIES} (user_id, state, joined_at, left_at)"
        " SELECT 'u', 'left', :t, :t FROM generate_series(1, 3)",
        t=NOON,
    )
    do(f"UPDATE {ENTRIES} SET left_at = :no_date WHERE id = 2", no_date=no_date)

    assert run(remove_left_entries, world, NOON + MONTH) == {"removed": 2, "left": 0, "broken": 1}
    assert named() == {(ENTRIES, "2"): 1}


def test_an_entry_that_was_left_and_has_a_chat_keeps_no_other_from_being_removed(world, do, named):
    world.chat("ann")
    do(f"UPDATE {ENTRIES} SET state = 'left', left_at = :t", t=NOON)
    do(f"INSERT INTO {ENTRIES} (user_id, state, joined_at, left_at) VALUES ('bob', 'left', :t, :t)", t=NOON)

    assert run(remove_left_entries, world, NOON + MONTH) == {"removed": 1, "left": 0, "broken": 1}
    assert named() == {(ENTRIES, "1"): 1}


def test_with_one_bad_row_of_every_kind_in_every_table_everything_else_goes_on(world, do, named):
    populate(world, do)
    for statement in SPOIL:
        do(statement, t=NOON)

    assert run(remove_left_entries, world, NOON) == {"removed": 3, "left": 0, "broken": 6}
    assert named() == {(ENTRIES, str(row_id)): 1 for row_id in range(19, 25)}

    assert run(archive_inactive_chats, world, NOON) == {"archived": 3, "ended": 0, "left": 0, "broken": 5}
    assert named() == {(CHATS, row_id): 1 for row_id in "45689"}

    assert run(assign_waiting_users, world, NOON) == {"assigned": 3, "broken": 6}
    assert named() == {(ENTRIES, str(row_id)): 1 for row_id in range(28, 34)}

    assert run(warn_quiet_chats, world, NOON + MINUTE) == {"warned": 12, "left": 0, "broken": 3}
    unfit = {(CHATS, row_id): 1 for row_id in ("8", "9", "14")}
    assert named() == unfit

    assert run(end_quiet_chats, world, NOON + TIMEOUT) == {"ended": 12, "warned": 0, "left": 0, "broken": 5}
    assert named() == unfit | {(AGENTS, "'low'"): 1, (AGENTS, "'high'"): 1}
    assert {name: world.get_agent(name).current_chats for name in ("free", "low", "high")} == {
        "free": 0,
        "low": 2,
        "high": 1,
    }


def populate(world, do):
    """Chats 1 to 6 are old and have ended, and 7 to 18 are active. The entries 19 to 27 of the queue are those of users
    who left long ago, and 28 to 36 are those of users who wait.
    """
    old = NOON - MONTH
    for name, now in (("old", old), ("low", NOON), ("high", NOON)):
        world.agent(name, capacity=9)
        world.waiting(*(f"{name}-{number}" for number in range(6)), since=now - timedelta(seconds=9))
        world.assign(now)
        do(f"UPDATE {AGENTS} SET is_online = false")
    for chat_id in range(1, 7):
        world.says(chat_id, "user", old)
        world.ends(chat_id, old)
    left = f"INSERT INTO {ENTRIES} (user_id, state, joined_at, left_at)"
    do(f"{left} SELECT 'left-' || n, 'left', :old, :old FROM generate_series(1, 9) n", old=old)
    world.agent("free", capacity=9)
    world.waiting(*(f"waits-{number}" for number in range(9)), since=NOON - timedelta(minutes=1))


ENDED = f"""
    INSERT INTO {CHATS} (queue_entry_id, user_id, agent_id, state, started_at, last_activity_at, ended_at, end_reason)
"""
SPOIL = [
    f"UPDATE {ENTRIES} SET left_at = NULL WHERE id = 19",
    *(f"UPDATE {ENTRIES} SET left_at = '{no_date}' WHERE id = {20 + n}" for n, no_date in enumerate(NO_DATES)),
    f"{ENDED} VALUES (24, 'x', 'old', 'ended', :t, :t, :t, 'closed_by_user')",
    *(f"UPDATE {ENTRIES} SET joined_at = '{no_date}' WHERE id = {28 + n}" for n, no_date in enumerate(NO_DATES)),
    f"UPDATE {ENTRIES} SET user_id = 'ghost' WHERE user_id = 'low-0'",
    f"UPDATE {ENTRIES} SET user_id = 'low-0' WHERE id = 32",
    f"{ENDED} VALUES (33, 'x', 'old', 'ended', :t, :t, :t, 'closed_by_user')",
    """INSERT INTO customer_service_archived_chats
       VALUES (4, 'x', 'x', :t, :t, :t, NULL, :t, 'closed_by_user', 'infinity')""",
    "INSERT INTO customer_service_archived_messages VALUES (5, 4, 'user', 'x', 'infinity')",
    f"UPDATE {CHATS} SET last_activity_at = '-infinity' WHERE id = 6",
    f"UPDATE {CHATS} SET last_activity_at = 'infinity' WHERE id = 8",
    f"UPDATE {CHATS} SET last_activity_at = '20000-01-01' WHERE id = 9",
    f"UPDATE {CHATS} SET warned_at = 'infinity' WHERE id = 14",
    f"UPDATE {AGENTS} SET current_chats = 0 WHERE id = 'low'",
    f"UPDATE {AGENTS} SET current_chats = 2147483647, capacity = 2147483647 WHERE id = 'high'",
    # No calculation uses these values, so the rows are processed.
    f"UPDATE {ENTRIES} SET assigned_at = 'infinity' WHERE id = 1",
    f"UPDATE {CHATS} SET started_at = 'infinity', ended_at = '20000-01-01' WHERE id = 1",
    "UPDATE customer_service_messages SET sent_at = '-infinity' WHERE chat_id = 1",
    "UPDATE customer_service_notifications SET created_at = 'infinity', ends_at = '20000-01-01'",
]
