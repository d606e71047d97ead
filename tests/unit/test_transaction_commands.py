"""SQL of routes that would begin or end a transaction."""

import pytest

from core.web.transaction_commands import ends_transaction


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        " \n commit;",
        "-- comment\nCOMMIT",
        "/* comment; */ Commit and chain",
        "SELECT 1; COMMIT; SELECT 2",
        "SELECT 'it''s; not' ; ROLLBACK",
        "SELECT E'\\'' ; ROLLBACK -- '",
        "SELECT $a$ $$ ; $a$; end work",
        "ROLLBACK",
        "ABORT",
        "ROLLBACK TRANSACTION",
        "BEGIN",
        "START TRANSACTION READ WRITE",
        "PREPARE TRANSACTION 'x'",
        "COMMIT PREPARED 'x'",
    ],
)
def test_a_command_that_ends_the_transaction_is_found(sql):
    assert ends_transaction(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'a; COMMIT'",
        'SELECT 1 AS "x; COMMIT"',
        "SELECT $$; COMMIT$$",
        "SELECT $tag$; COMMIT $$ ; COMMIT $tag$",
        "SELECT E'\\'; COMMIT'",
        "SELECT 1 -- ; COMMIT",
        "SELECT 1 /* ; COMMIT */",
        "SAVEPOINT a",
        "RELEASE SAVEPOINT a",
        "ROLLBACK TO SAVEPOINT a",
        "ROLLBACK WORK TO a",
        "PREPARE query AS SELECT 1",
        "SELECT CASE WHEN true THEN 1 END",
        "UPDATE committed SET begin_at = now()",
        "SET LOCAL work_mem = '64MB'",
        "commits",
    ],
)
def test_other_commands_and_texts_are_left_alone(sql):
    assert not ends_transaction(sql)
