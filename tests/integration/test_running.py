"""A run that passes through all parts of a worker."""

from core import Run, job


@job("add-up")
def add_up(run: Run, numbers: list[int]) -> dict[str, int]:
    return {"sum": sum(numbers)}


def test_a_run_succeeds_with_its_result(run_job):
    row = run_job(add_up, args={"numbers": [1, 2]})

    assert (row.state, row.result, row.attempt) == ("succeeded", {"sum": 3}, 1)
