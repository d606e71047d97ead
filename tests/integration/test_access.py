"""The rights of each role, and of a person with limits to plugins and queues. The operations check them."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from core import job, settings
from core.errors import Forbidden, RotaError, TokenError
from core.jobs.keyed import KeySchedule
from core.jobs.registry import Plugin, Registry
from core.jobs.routes import Route
from core.ledger.audit import Action, Actor
from core.operations import access, bulk, orphans, pauses, plans, plugin_routes, requests, schedules, sessions, tokens
from core.operations.selection import Selection
from core.operations.tokens import Wanted
from core.plugins import loading

VIEWER, OPERATOR, ADMIN = (Actor("ann", "http", role) for role in ("viewer", "operator", "admin"))


@job("close-day", queue="billing")
def close_day(run):
    """Close the day."""


@job("poll", queue="mail")
def poll(run):
    """Poll."""


@pytest.fixture(autouse=True)
def registry(environment, database):
    plugins = (Plugin("billing", "", "", (close_day,)), Plugin("mail", "", "", (poll,)))
    with loading.using(Registry(plugins)) as registry:
        yield registry


def limited(*, plugins=None, queues=None):
    names = [None if each is None else frozenset(each) for each in (plugins, queues)]
    return Actor("ben", "http", "operator", *names)


POLL_NOW = Route("POST", "/poll", "mail:poll", "operator")

#: Each action, with the lowest role that may do it.
CHANGES = {
    "run": ("operator", lambda engine, registry, actor: requests.request(engine, registry, "close-day", actor)),
    "retry": ("operator", lambda engine, registry, actor: planned(bulk.plan_retry, engine, registry, actor)),
    "drop": ("operator", lambda engine, registry, actor: planned(bulk.plan_drop, engine, registry, actor)),
    "cancel": ("operator", lambda engine, registry, actor: planned(bulk.plan_cancel, engine, registry, actor)),
    "pause": ("operator", lambda *given: paused(pauses.begin, *given)),
    "resume": ("operator", lambda *given: paused(pauses.end, *given)),
    "orphans adopt": ("operator", lambda engine, _registry, actor: orphans.adopt(engine, close_day, actor)),
    "orphans clean": ("operator", lambda engine, registry, actor: cleaning(engine, registry, actor)),
    "operations cancel": ("operator", lambda engine, _registry, actor: begun(engine, plans.cancel, 1, actor)),
    "schedules add": (
        "operator",
        lambda engine, _registry, actor: schedules.add(engine, "poll", KeySchedule("1", timedelta(minutes=1)), actor),
    ),
    "schedules remove": ("operator", lambda engine, _registry, actor: schedules.remove(engine, "poll", "1", actor)),
    "schedules pause": ("operator", lambda engine, _registry, actor: schedules.pause(engine, "poll", "1", actor)),
    "schedules resume": ("operator", lambda engine, _registry, actor: schedules.resume(engine, "poll", "1", actor)),
    "schedules clean": ("admin", lambda engine, registry, actor: schedules.clean(engine, registry, [], actor)),
    "tokens create": ("admin", lambda engine, _registry, actor: begun(engine, tokens.create, Wanted("x"), actor)),
    "tokens revoke": ("admin", lambda engine, _registry, actor: begun(engine, tokens.revoke, "x", actor)),
    "call": ("operator", lambda _engine, _registry, actor: plugin_routes.check(actor, "mail", POLL_NOW)),
    "tokens link": ("admin", lambda engine, _registry, actor: begun(engine, tokens.link, actor)),
    "sessions end": ("admin", lambda engine, _registry, actor: begun(engine, sessions.end, 1, actor)),
}


def begun(engine, operation, *given):
    with engine.begin() as connection:
        return operation(connection, *given)


def cleaning(engine, registry, actor):
    return begun(engine, plans.make, registry, settings.load(), plans.Wanted("cleanup"), actor)


def planned(plan, engine, registry, actor):
    with engine.connect() as connection:
        return plan(connection, registry, Selection(job="close-day"), actor)


def paused(operation, engine, registry, actor):
    return begun(engine, operation, registry, "job:close-day", actor)


def is_forbidden(change, *given):
    """Return whether the action is refused for lack of rights. Any other error means that the rights are enough."""
    try:
        change(*given)
    except Forbidden:
        return True
    except RotaError:
        return False
    return False


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("actor", [VIEWER, OPERATOR, ADMIN], ids=lambda actor: actor.role)
def test_each_role_may_make_the_changes_that_it_is_for(action, actor, database, registry):
    role, change = CHANGES[action]

    assert is_forbidden(change, database, registry, actor) == (access.RANKS[actor.role] < access.RANKS[role])


def test_every_action_of_the_audit_needs_a_role():
    assert set(get_args(Action)) == set(access.NEEDS)
    assert set(CHANGES) == set(access.NEEDS) - {"db upgrade", "db drop-plugin", "schedules sync"}


@pytest.mark.parametrize(
    ("actor", "scope", "may"),
    [
        (limited(plugins=["billing"]), "job:close-day", True),
        (limited(plugins=["billing"]), "job:poll", False),
        (limited(plugins=["billing"]), "plugin:billing", True),
        (limited(plugins=["billing"]), "queue:billing", False),  # another plugin may get a job on this queue
        (limited(queues=["mail"]), "queue:mail", True),
        (limited(queues=["mail"]), "plugin:mail", False),
        (limited(plugins=["billing"], queues=["mail"]), "job:close-day", False),
        (limited(plugins=["billing"]), "everything", False),
        (limited(plugins=[]), "job:close-day", False),
        (OPERATOR, "everything", True),
    ],
)
def test_limits_cover_a_scope_only_as_a_whole(database, registry, actor, scope, may):
    def pause(engine, registry, actor):
        return begun(engine, pauses.begin, registry, scope, actor)

    assert is_forbidden(pause, database, registry, actor) != may


def test_a_person_with_limits_acts_on_their_own_jobs_alone(database, registry, ledger):
    dead = {"state": "dead", "finished_at": datetime(2026, 1, 15, tzinfo=UTC)}
    theirs = ledger.request("close-day", queue="billing", **dead)
    other = ledger.request("poll", queue="mail", **dead)
    ben = limited(plugins=["billing"])

    with (
        database.connect() as connection,
        pytest.raises(Forbidden, match="the plugins billing, which do not have poll"),
    ):
        bulk.plan_drop(connection, registry, Selection(ids=(theirs, other)), ben)
    with database.connect() as connection:
        plan = bulk.plan_drop(connection, registry, Selection(ids=(theirs,)), ben)
    assert bulk.carry_out(database, plan) == 1
    assert [ledger.run(each).reason for each in (theirs, other)] == ["dropped", None]


def test_a_job_that_is_not_loaded_here_has_the_plugin_of_its_last_release(database, start_process):
    @job("elsewhere", queue="far")
    def elsewhere(run):
        """Not loaded here."""

    start_process(jobs=[elsewhere], plugin="far")
    with database.connect() as connection:
        assert access.visible(connection, limited(plugins=["far"])) == {"elsewhere"}
        assert access.visible(connection, limited(queues=["billing"])) == {"close-day"}
        assert access.visible(connection, OPERATOR) is None


def test_an_admin_with_limits_cannot_make_a_token_without_them(database):
    ann = Actor("ann", "http", "admin", frozenset({"billing"}))

    with database.begin() as connection, pytest.raises(Forbidden, match="limited to the plugins billing"):
        tokens.create(connection, Wanted("all", "admin"), ann)


def test_the_audit_has_the_facts_of_the_caller(database, registry, ledger):
    ann = tokens.with_facts(OPERATOR, token=7, request="abc", reason=None)

    begun(database, pauses.begin, registry, "job:poll", ann)

    assert ledger.value("SELECT details FROM rota_audit") == {"token": 7, "request": "abc"}
    assert ledger.value("SELECT via FROM rota_audit") == "http"


class TestTokens:
    def make(self, engine, name="grafana", **wanted):
        return begun(engine, tokens.create, Wanted(name, **wanted), ADMIN).token

    def test_only_the_hash_is_kept(self, database, ledger):
        secret = self.make(database)

        assert secret.startswith("rota_token_")
        assert len(secret) > 70
        kept = ledger.rows("SELECT row_to_json(rota_credentials)::text AS row FROM rota_credentials")
        kept += ledger.rows("SELECT row_to_json(rota_audit)::text AS row FROM rota_audit")
        assert len(kept) == 2
        assert not [row for row in kept if secret[11:40] in row.row]

    def test_its_holder_has_its_rights(self, database):
        secret = self.make(database, role="operator", plugins=["billing"])

        holder = begun(database, tokens.holder, secret)

        assert (holder.name, holder.role, holder.plugins, holder.queues) == (
            "grafana",
            "operator",
            frozenset({"billing"}),
            None,
        )
        assert holder.sees_arguments

    def test_a_viewer_sees_arguments_only_if_that_was_asked_for(self, database):
        usual, wanted = self.make(database), self.make(database, "ben", sees_arguments=True)

        assert not begun(database, tokens.holder, usual).sees_arguments
        assert begun(database, tokens.holder, wanted).sees_arguments

    @pytest.mark.parametrize(
        "forge", [lambda s: s[:-1] + "x", lambda s: "", lambda s: s.upper(), lambda s: s + "\ud800"]
    )
    def test_a_forged_one_is_refused_without_a_query(self, database, forge):
        secret = self.make(database)

        with pytest.raises(tokens.NotAuthenticated) as refused:
            tokens.holder(None, forge(secret))
        assert secret[11:40] not in str(refused.value)

    def test_an_expired_or_revoked_one_is_refused(self, database, ledger):
        expired, revoked = self.make(database), self.make(database, "ben")
        ledger.do("UPDATE rota_credentials SET expires_at = clock_timestamp() WHERE name = 'grafana'")
        session = begun(database, tokens.log_in, revoked)
        begun(database, tokens.revoke, "ben", ADMIN)

        for secret, kind in ((expired, "token"), (revoked, "token"), (session, "session")):
            with database.begin() as connection, pytest.raises(tokens.NotAuthenticated):
                tokens.holder(connection, secret, kind=kind)

    def test_a_session_is_not_a_token_nor_a_token_a_session(self, database):
        secret = self.make(database)
        session = begun(database, tokens.log_in, secret)

        assert begun(database, lambda connection: tokens.holder(connection, session, kind="session")).name == "grafana"
        for wrong, kind in ((secret, "session"), (session, "token")):
            with database.begin() as connection, pytest.raises(tokens.NotAuthenticated):
                tokens.holder(connection, wrong, kind=kind)
        with database.begin() as connection, pytest.raises(tokens.NotAuthenticated):
            tokens.log_in(connection, session)

    def test_a_link_is_used_once(self, database):
        link = begun(database, tokens.link, ADMIN)
        session = begun(database, tokens.log_in, link)

        assert begun(database, lambda connection: tokens.holder(connection, session, kind="session")).role == "admin"
        with database.begin() as connection, pytest.raises(tokens.NotAuthenticated, match="used"):
            tokens.log_in(connection, link)

    @pytest.mark.parametrize(
        ("wanted", "said"),
        [
            (Wanted("a b"), "not a name"),
            (Wanted("<script>"), "not a name"),
            (Wanted("x", lasting=timedelta(days=4000)), "valid for up to"),
            (Wanted("x", plugins=["biling"]), "did you mean 'billing'"),
            (Wanted("x", queues=["mial"]), "did you mean 'mail'"),
        ],
    )
    def test_a_wrong_wish_is_refused_in_words(self, database, wanted, said):
        with database.begin() as connection, pytest.raises(TokenError, match=said):
            tokens.create(connection, wanted, ADMIN)

    def test_a_name_is_taken_once(self, database):
        self.make(database)

        with database.begin() as connection, pytest.raises(TokenError, match="there is a token named"):
            tokens.create(connection, Wanted("grafana"), ADMIN)

    def test_its_last_use_is_kept_to_the_minute(self, database, ledger):
        secret = self.make(database)
        for _ in range(2):
            begun(database, tokens.holder, secret)

        (token,) = begun(database, tokens.listed, ADMIN)
        assert token.used_at.second == token.used_at.microsecond == 0

    def test_ended_sessions_and_old_tokens_are_deleted(self, database, ledger, run_job):
        from core.upkeep import prune_runs

        secret = self.make(database)
        begun(database, tokens.log_in, secret)
        begun(database, tokens.link, ADMIN)
        self.make(database, "ben")
        ledger.do("UPDATE rota_credentials SET expires_at = clock_timestamp() - interval '1 hour'")
        ledger.do("UPDATE rota_credentials SET expires_at = clock_timestamp() - interval '31 days' WHERE name = 'ben'")
        ledger.do("INSERT INTO rota_requested VALUES ('a', 'k', 'f', 1, clock_timestamp() - interval '2 days')")
        ledger.do("INSERT INTO rota_requested VALUES ('b', 'k', 'f', 1)")

        assert run_job(prune_runs).state == "succeeded"

        assert [row.kind for row in ledger.rows("SELECT kind FROM rota_credentials")] == ["token"]
        assert [row.caller for row in ledger.rows("SELECT caller FROM rota_requested")] == ["b"]
