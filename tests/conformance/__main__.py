"""Runs Dramatiq's tests, and compares the failures with the expected failures. Exit status 0: no other test failed."""

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from core.embedded import EmbeddedRedis, temporary_folder

ROOT = Path(__file__).parents[2]
DOWNLOADS = ROOT / ".bench"
#: What may fail, and why.
EXPECTED = {
    "test_redis_broker_can_connect_via_url": "makes a broker of Dramatiq's own, on a port nobody serves",
    "test_redis_broker_can_connect_via_client": "as above",
    "test_redis_consumer_ack_can_retry_on_connection_error": "counts calls of do_ack; ours are gathered, and tried "
    "again by one thread (tests/integration/test_redis_trouble.py)",
    "test_redis_consumer_nack_can_retry_on_connection_error": "as above",
    "test_redis_join_race_condition": "counts messages that are done and whose gathered acknowledgement is 5 ms away",
}
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", re.MULTILINE)


def downloaded() -> Path:
    """The folder of Dramatiq's sources, of the version that is installed."""
    name = f"dramatiq-{version('dramatiq')}"
    folder = DOWNLOADS / name
    if not folder.exists():
        DOWNLOADS.mkdir(exist_ok=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
        command = [sys.executable, "-m", "pip", "download", *options, name.replace("-", "==", 1), "-d", str(DOWNLOADS)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with tarfile.open(DOWNLOADS / f"{name}.tar.gz") as archive:
            archive.extractall(DOWNLOADS, filter="data")
    return folder


def prepared(folder: Path) -> Path:
    """The tests, with what they import from beside them."""
    tests = folder / "tests"
    (tests / "__init__.py").touch()
    (tests / "common.py").write_text("from conformance_fixtures import worker\n")
    (tests / "conftest.py").write_text("from conformance_fixtures import redis_broker, redis_worker\n")
    (folder / "conformance_fixtures.py").write_text((Path(__file__).parent / "fixtures.py").read_text())
    return tests / "test_redis.py"


def outcomes(folder: Path, tests: Path, redis_url: str) -> dict[str, str]:
    """What became of each test."""
    options = ["-q", "-rA", "--show-capture=no", "--tb=no", "--timeout=60", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, f"--rootdir={folder}", str(tests)],
        cwd=folder,
        env={**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    return {name: outcome for outcome, name in OUTCOME.findall(done.stdout)}


def main() -> int:
    """Run and compare."""
    folder = downloaded()
    with temporary_folder() as data:
        server = EmbeddedRedis(Path(data), persistent=False)
        server.start()
        try:
            found = outcomes(folder, prepared(folder), server.url)
        finally:
            server.stop()
    failed = {name for name, outcome in found.items() if outcome != "PASSED"}
    for name in sorted(failed | EXPECTED.keys()):
        print(f"{found.get(name, 'absent'):7} {name}: {EXPECTED.get(name, 'must not fail')}")  # noqa: T201
    print(f"{len(found) - len(failed)} passed, {len(failed - EXPECTED.keys())} failed")  # noqa: T201
    print(f"({len(failed & EXPECTED.keys())} failed as expected, of {len(found)} in all)")  # noqa: T201
    return 0 if found and failed <= EXPECTED.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
