"""Real wheels in real virtual environments, in which pip installs and uninstalls them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The folder of each distribution of this repository.
CORE = ROOT
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
#: The files in site-packages of a distribution that was installed from its folder, under any name.
OURS = re.compile(rf"_*(editable_+)?\.?rota(_({'|'.join(folder.name for folder in PLUGINS)}))?[-_.]\d.*")
LEFTOVERS = shutil.ignore_patterns("build", "dist", "*.egg-info", ".*", "__pycache__")
SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""
SCRIPTS = {
    "pip": ("pip._internal.cli.main", "main"),
    "pytest": ("pytest", "main"),
    "dramatiq": ("dramatiq.__main__", "main"),
    "periodiq": ("periodiq", "entrypoint"),
}


def pip(python: Path | str, *words: str, cwd: Path) -> None:
    """Run pip offline. Raises AssertionError with the output of pip."""
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(python), "-m", "pip", *words], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder: Path, into: Path) -> Path:
    """Build the wheel of the package in ``folder`` from a copy, since a build leaves files behind."""
    with tempfile.TemporaryDirectory() as temporary:
        source = shutil.copytree(folder, Path(temporary, folder.name), ignore=LEFTOVERS)
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(into), str(source)]
        pip(sys.executable, *words, cwd=source)
    (wheel,) = into.glob("*.whl")
    return wheel


@cache
def shared() -> Path:
    """Return a folder for files that all tests of this process share."""
    return Path(_folder().name)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rota-wheels-")


@cache
def wheel_of(folder: Path) -> Path:
    """Return the wheel of a distribution of this repository, which is built once."""
    return build(folder, shared() / folder.name)


@cache
def borrowed() -> Path:
    """Link the packages of the environment that runs the tests, except Rota's own."""
    links = shared() / "borrowed"
    links.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not OURS.fullmatch(path.name):
            (links / path.name).symlink_to(path)
    return links


@dataclass
class Environment:
    """A virtual environment for one test, with Rota installed from its wheel, and without plugins."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        site = sysconfig.get_path("purelib", vars={"base": str(self.folder), "platbase": str(self.folder)})
        Path(site, "borrowed.pth").write_text(f"{borrowed()}\n")
        for name, (module, function) in SCRIPTS.items():
            script = self.bin / name
            script.write_text(SCRIPT.format(python=self.python, module=module, function=function))
            script.chmod(0o755)
        self.install(wheel_of(CORE))

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """The path of its interpreter."""
        return self.bin / "python"

    def install(self, *wheels: Path) -> None:
        """Install wheels without their dependencies."""
        pip(self.python, "install", "-q", "--no-deps", "--force-reinstall", *map(str, wheels), cwd=self.folder)

    def uninstall(self, *distributions: str) -> None:
        """Uninstall packages."""
        pip(self.python, "uninstall", "-q", "-y", *distributions, cwd=self.folder)

    def run(self, *words: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, and wait for the end."""
        return subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=cwd or self.folder,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
