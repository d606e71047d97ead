"""Which plugins may be loaded: the name must be valid and unique, and the required version of Rota installed."""

from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

import pytest

from core.plugins import loading


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the metadata that pip writes for a package with one plugin. Return the installed entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, plugin: str, *requires: str) -> EntryPoint:
        about = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        about.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.2", *(f"Requires-Dist: {r}" for r in requires)]
        (about / "METADATA").write_text("\n".join(lines) + "\n")
        (about / "entry_points.txt").write_text(f"[rota.plugins]\n{plugin} = admitted_plugin\n")
        (tmp_path / "admitted_plugin.py").write_text("")
        installed = entry_points(group=loading.GROUP)
        return next(point for point in installed if point.dist is not None and point.dist.name == name)

    return write


def errors(*points: EntryPoint) -> list[str | None]:
    return [plugin.error for plugin in loading.load(points).plugins if plugin.name != loading.CORE]


@pytest.mark.parametrize(
    "requirement",
    [
        "rota",
        "rota>=0.0.1",
        "Rota<999",
        f"rota=={version('rota')}",
        "rota[embedded]>=0.1; extra == 'dev'",
        "rota>=999; extra == 'dev'",
        "rota>=999; python_version < '3'",
        "rotary>=999",
        "not a requirement at all",
    ],
)
def test_a_requirement_that_is_met_admits(package, requirement):
    assert errors(package("billing-jobs", "billing", requirement)) == [None]


def test_a_plugin_that_needs_a_newer_core_is_broken_and_says_so(package):
    [error] = errors(package("billing-jobs", "billing", "rota>=999"))

    assert error == (
        f"PluginError: billing-jobs 1.2 needs rota>=999, and {version('rota')} is installed; "
        "upgrade rota, or install another version of billing-jobs"
    )


def test_a_plugin_that_needs_a_newer_core_is_not_imported(package, tmp_path):
    point = package("billing-jobs", "billing", "rota>=999")
    (tmp_path / "admitted_plugin.py").write_text("raise SystemExit('imported')")

    assert "imported" not in str(errors(point))


@pytest.mark.parametrize("name", ["Billing", "billing-jobs", "1st", "_billing", "bill.ing", "b" * 41, "é", "bil ling"])
def test_a_name_that_is_none_is_broken_and_says_what_one_is(package, name):
    [error] = errors(package("billing-jobs", name))

    assert error is not None
    assert f"plugin name {name!r} must be a letter, then letters, digits and _" in error


@pytest.mark.parametrize("name", ["b", "billing", "billing_2", "b" * 40])
def test_a_name_that_is_one_is_admitted(package, name):
    assert errors(package("billing-jobs", name)) == [None]


def test_two_packages_with_one_plugin_name_are_both_refused_and_both_named(package):
    points = [package("billing-jobs", "billing"), package("other-billing", "billing")]

    expected = (
        "PluginError: plugin name 'billing' is taken by 'billing-jobs' and 'other-billing'; uninstall one of them"
    )
    assert errors(*points) == [expected, expected]


def test_a_name_that_would_share_the_ledgers_tables_is_refused(package):
    assert errors(package("rota-plugin", "rota")) == [
        "PluginError: plugin name 'rota' is taken: tables of that name are Rota's own"
    ]
