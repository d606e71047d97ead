"""``rota new-plugin``: creates a package with a new plugin, whose tests pass unchanged."""

from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from string import Template

import click

from core.cli import Problem
from core.cli.output import say
from core.errors import PluginError
from core.plugins import admission, loading

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".tmpl"


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write to; by default a folder called NAME in the current folder.",
)
def new_plugin(name: str, directory: Path | None) -> None:
    """Create a package with the plugin NAME: a job, a table, a migration, tests and a README.

    \b
      rota new-plugin billing
      cd billing && pip install -e '.[dev]' && pytest
    """
    refuse_name(name)
    folder = directory or Path(name)
    try:
        written = list(write(folder, name))
    except OSError as error:
        raise Problem(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    say(*map(str, written))
    say("", f"next: cd {folder} && pip install -e '.[dev]' && pytest")


def refuse_name(name: str) -> None:
    """Raise PluginError for a name that is invalid or taken."""
    admission.refuse_bad_name(name)
    taken = {loading.CORE, *(point.name for point in entry_points(group=loading.GROUP))}
    if name in taken:
        raise PluginError(f"a plugin called {name!r} is installed already; see `rota plugins`")


def write(folder: Path, name: str) -> Iterator[Path]:
    """Write every file of the package, and yield each path. Raises Problem if a file would be overwritten."""
    if folder.exists() and any(folder.iterdir()):
        raise Problem(f"{folder} is not empty; give another folder with --directory")
    values = values_for(name)
    for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
        parts = template.relative_to(TEMPLATES).with_suffix("").parts
        path = folder.joinpath(*(values["package"] if part == "package" else part for part in parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text()).substitute(values))
        yield path


def values_for(name: str) -> dict[str, str]:
    """Return the values for the templates."""
    dashed = name.replace("_", "-").strip("-")
    return {
        "name": name,
        "package": f"rota_{name}",
        "wheel": f"rota_{name}".rstrip("_"),
        "distribution": f"rota-{dashed}",
        "class_name": "".join(word.capitalize() for word in name.split("_")),
        "job": f"{dashed}-forget-notes",
        "rota": version(admission.OURS),
    }
