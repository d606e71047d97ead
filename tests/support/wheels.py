"""Real wheels in real virtual environments: built, installed and uninstalled by pip."""

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
#: The distributions of this repository, by the folders that hold their pyproject.toml.
CORE = ROOT
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
#: What a distribution of ours has in site-packages when it is installed from its folder, under whatever name.
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
    """Run pip offline; what goes wrong is in the error."""
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(python), "-m", "pip", *words], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder: Path, into: Path) -> Path:
    """The wheel of the package in ``folder``, built from a copy, since building leaves things behind."""
    with tempfile.TemporaryDirectory() as temporary:
        source = shutil.copytree(folder, Path(temporary, folder.name), ignore=LEFTOVERS)
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(into), str(source)]
        pip(sys.executable, *words, cwd=source)
    (wheel,) = into.glob("*.whl")
    return wheel


@cache
def shared() -> Path:
    """A folder for what all tests of this process have in common."""
    return Path(_folder().name)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rota-wheels-")


@cache
def wheel_of(folder: Path) -> Path:
    """The wheel of a distribution of this repository, built once."""
    return build(folder, shared() / folder.name)


@cache
def borrowed() -> Path:
    """Links to the packages of the environment that runs the tests, all but ours."""
    links = shared() / "borrowed"
    links.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not OURS.fullmatch(path.name):
            (links / path.name).symlink_to(path)
    return links


@dataclass
class Environment:
    """A virtual environment of a test's own, with Rota installed from its wheel, and without any plugin."""

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
        """Where its commands are."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.bin / "python"

    def install(self, *wheels: Path) -> None:
        """Install wheels, and nothing that they need."""
        pip(self.python, "install", "-q", "--no-deps", "--force-reinstall", *map(str, wheels), cwd=self.folder)

    def uninstall(self, *distributions: str) -> None:
        """Uninstall packages."""
        pip(self.python, "uninstall", "-q", "-y", *distributions, cwd=self.folder)

    def run(self, *words: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands to its end."""
        return subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=cwd or self.folder,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
