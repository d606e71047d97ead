"""``rota tokens``: makes, lists and revokes tokens; a secret is printed once."""

import json

import pytest
from click.testing import CliRunner

from core.cli import main
from core.operations import tokens


@pytest.fixture
def rota(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["tokens", *words], catch_exceptions=False)


def test_the_secret_alone_is_on_standard_output(rota, database):
    made = rota("create", "grafana", "--role", "operator", "--queue", "rota", "--for", "1d", "--by", "ann")

    assert made.exit_code == 0
    with database.begin() as connection:
        holder = tokens.holder(connection, made.stdout.strip())
    assert (holder.name, holder.role, holder.queues) == ("grafana", "operator", frozenset({"rota"}))
    assert "not shown again" in made.stderr


def test_the_list_has_no_secret(rota):
    secret = rota("create", "grafana", "--by", "ann").stdout.strip()
    told, listed = rota(), rota("--json")

    (token,) = json.loads(listed.stdout)
    assert (token["name"], token["role"], token["created_by"], token["used_at"]) == ("grafana", "viewer", "ann", None)
    assert "grafana" in told.stdout
    assert secret[11:40] not in told.stdout + listed.stdout


def test_what_is_not_there_cannot_be_revoked(rota):
    rota("create", "grafana")

    wrong = rota("revoke", "grafanna")
    assert (wrong.exit_code, wrong.stderr) == (
        1,
        "rota: there is no token and no session named 'grafanna'; did you mean 'grafana'?\n",
    )
    assert rota("revoke", "grafana").stdout == "revoked grafana\n"
    assert rota().stdout == "no tokens; `rota tokens create NAME` makes one\n"


def test_a_link_is_for_the_address_of_the_settings(rota, monkeypatch):
    monkeypatch.setenv("ROTA_WEB_HOST", "::")
    monkeypatch.setenv("ROTA_WEB_PORT", "9555")
    monkeypatch.setenv("ROTA_WEB_PREFIX", "/rota")

    link = rota("link", "--role", "viewer")

    assert link.stdout.startswith("http://localhost:9555/rota/login?link=rota_link_")
