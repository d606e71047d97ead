"""Real wheels in real virtual environments: built, installed and uninstalled by pip."""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Has the packages of the environment that runs the tests, editable ones too; pip then installs into this one alone.
BORROW = "import site; site.addsitedir({site!r})\n"
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
    "rota": ("core.cli", "main"),
}


def pip(python: Path | str, *words: str, cwd: Path) -> None:
    """Run pip offline; what goes wrong is in the error."""
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(python), "-m", "pip", *words], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder: Path, into: Path) -> Path:
    """The wheel of the package in ``folder``."""
    pip(sys.executable, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(into), str(folder), cwd=folder)
    (wheel,) = into.glob("*.whl")
    return wheel


@dataclass
class Environment:
    """A virtual environment of a test's own."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        site = sysconfig.get_path("purelib", vars={"base": str(self.folder), "platbase": str(self.folder)})
        Path(site, "borrowed.pth").write_text(BORROW.format(site=sysconfig.get_path("purelib")))
        for name, (module, function) in SCRIPTS.items():
            script = self.bin / name
            script.write_text(SCRIPT.format(python=self.python, module=module, function=function))
            script.chmod(0o755)

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.bin / "python"

    def install(self, wheel: Path) -> None:
        """Install a wheel, and nothing that it needs."""
        pip(self.python, "install", "-q", "--no-deps", "--force-reinstall", str(wheel), cwd=self.folder)

    def uninstall(self, distribution: str) -> None:
        """Uninstall a package."""
        pip(self.python, "uninstall", "-q", "-y", distribution, cwd=self.folder)

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
