"""A plugin whose jobs have other declarations in each release. Each effect records the arguments that the job got."""

from pathlib import Path

QUEUE = "shaped"
GIVEN = "CREATE TABLE IF NOT EXISTS given (job text, run_id bigint, args jsonb, pid int)"
MODULE = """
import json
import os

from sqlalchemy import text

from core import Run, hookimpl, job

GIVEN = text("INSERT INTO given VALUES (:job, :run, CAST(:args AS jsonb), :pid)")


def keep(run, **args):
    run.session.execute(GIVEN, {{"job": run.job, "run": run.id, "args": json.dumps(args), "pid": os.getpid()}})


{jobs}

@hookimpl
def register_jobs():
    return [{names}]
"""
JOB = """
@job({name!r}, queue={queue!r}, overlap="allow", ledger={ledger})
def {function}(run: Run, {parameters}) -> None:
    keep(run, {passed})

"""


def declared(name: str, parameters: str, *, ledger: bool = True) -> tuple[str, str]:
    """Return the source of a job with these parameters, and the name of its function."""
    function = name.replace("-", "_")
    names = [each.partition(":")[0].strip() for each in parameters.split(",")]
    passed = ", ".join(f"{each}={each}" for each in names)
    source = JOB.format(
        name=name, queue=QUEUE, ledger=ledger, function=function, parameters=parameters, passed=passed
    )  # fmt: skip
    return source, function


def install(folder: Path, *jobs: tuple[str, str]) -> Path:
    """Write a release with these jobs into ``folder`` as pip would."""
    info = folder / "shaped-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nshaped = shaped_jobs\n")
    sources, names = zip(*jobs, strict=True)
    (folder / "shaped_jobs.py").write_text(MODULE.format(jobs="\n".join(sources), names=", ".join(names)))
    return folder
