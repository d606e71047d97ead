"""The option ``keyed`` of a job, which is checked when the job is declared."""

from datetime import timedelta

import pytest

from core import Keyed, cron, every, job
from core.errors import DeclarationError
from core.ledger.releases import described

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("keyed", "problem"),
    [
        (60, "keyed=60 must be Keyed(least, most, default)"),
        (Keyed(least=timedelta(0)), "keyed: least=datetime.timedelta(0) must be whole seconds"),
        (Keyed(most=SECOND * 10.5), "keyed: most=datetime.timedelta(seconds=10, microseconds=500000) must be whole"),
        (Keyed(most=5 * SECOND), "keyed: least=0:00:10 must not be longer than most=0:00:05"),
        (Keyed(default=every(seconds=1)), "the interval 0:00:01 must be 0:00:10 to 1 day"),
        (Keyed(least=DAY, default=cron("0 * * * *")), "the slots of '0 * * * * UTC' must be at least 1 day"),
        (Keyed(default="every 1m"), "keyed: default='every 1m' must be every(…) or cron(…)"),
        (Keyed(backoff_after=0), "keyed: backoff_after=0 must be a whole number, 1 or more, or None"),
        (Keyed(keep="none"), "keyed: keep='none' must be one of 'all', 'failures'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(keyed, problem):
    with pytest.raises(DeclarationError) as refused:
        job("poll", keyed=keyed)(lambda run: None)

    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"schedule": every(seconds=60)}, "schedule='every 1m' and keyed contradict each other"),
        ({"ledger": False}, "keyed must not be given with ledger=False"),
    ],
    ids=str,
)
def test_it_fits_no_job_with_a_schedule_of_its_own_or_without_the_ledger(options, problem):
    with pytest.raises(DeclarationError) as refused:
        job("poll", keyed=Keyed(), **options)(lambda run: None)

    assert problem in str(refused.value)


def test_a_release_records_what_is_kept():
    kept, short = (job("poll", keyed=Keyed(keep=keep))(lambda run: None) for keep in ("all", "failures"))

    assert "keep" not in described(kept, "mail")["keyed"]
    assert described(short, "mail")["keyed"]["keep"] == "failures"
