"""Options that ``@job`` accepts, options that it refuses, and the messages of its errors."""

import inspect
from datetime import timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import JobDefaults, Limit, Run, Secret, Subject, cron, every, job
from core.errors import DeclarationError
from core.jobs.defaults import JobOptions
from core.jobs.job import LONGEST_RETRY_DELAY, LONGEST_SPAN, Job
from core.jobs.secrets import refuse_wrong_secrets
from core.plugins.loading import checked

SECOND = timedelta(seconds=1)


def work(run: Run) -> str:
    """Work.

    The second paragraph.
    """
    return f"worked in {run}"


def declared(function: Any = work, *, name: Any = "close-day", **options: Any) -> Job:
    return job(name, **options)(function)


def refusal(function: Any = work, **options: Any) -> str:
    with pytest.raises(DeclarationError) as caught:
        declared(function, **options)
    return str(caught.value)


# Accepted options


def test_the_defaults_are_those_of_the_documentation():
    found = declared()

    assert (found.queue, found.schedule, found.max_retries, found.retry_delay) == ("default", None, 3, 60 * SECOND)
    assert (found.backoff, found.overlap, found.misfire, found.misfire_grace) == (
        "fixed",
        "allow",
        "latest",
        timedelta(hours=6),
    )
    assert (found.soft_limit, found.hard_limit, found.ledger) == (timedelta(minutes=25), timedelta(minutes=30), True)


def test_calling_a_job_calls_its_function():
    assert declared()("a run") == "worked in a run"


def test_the_decorator_passes_every_option_on():
    options = {
        "queue": "billing",
        "schedule": cron("30 3 * * *", tz="Europe/London"),
        "max_retries": 0,
        "retry_delay": SECOND,
        "backoff": "exponential",
        "longest_delay": 2 * SECOND,
        "jitter": True,
        "retry_on": (OSError,),
        "dead_on": (PermissionError, KeyboardInterrupt),
        "expires": SECOND,
        "priority": 9,
        "overlap": "allow",
        "misfire": "all",
        "misfire_grace": 2 * SECOND,
        "soft_limit": 3 * SECOND,
        "hard_limit": 4 * SECOND,
    }

    found = declared(**options)

    assert {name: getattr(found, name) for name in options} == options
    assert declared(ledger=False).ledger is False


def test_the_description_is_the_first_line_of_the_docstring():
    assert declared().description == "Work."
    assert declared(lambda run: None).description == ""


def test_declaring_a_job_does_not_call_its_function():
    def explode(run: Run) -> None:
        raise AssertionError("called")

    assert declared(explode).name == "close-day"


def test_only_a_job_that_allows_overlap_is_not_exclusive():
    assert declared(overlap="wait").exclusive
    assert declared(schedule=every(minutes=1)).overlap == "skip"
    assert declared(schedule=every(minutes=1)).exclusive
    assert not declared(overlap="allow").exclusive


@pytest.mark.parametrize("name", ["a", "close-day", "close_day2", "a" * 100])
def test_a_good_name_is_accepted(name):
    assert declared(name=name).name == name


@pytest.mark.parametrize("limit", [timedelta(milliseconds=1), LONGEST_SPAN])
def test_a_limit_at_its_bound_is_accepted(limit):
    assert declared(soft_limit=limit, hard_limit=limit).hard_limit == limit


# Refused options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("name", value) for value in ["", "Close", "1st", "-a", "a b", "a\n", "é", "a" * 101, None, 5, "a.b", work]),
        *(("queue", value) for value in ["", "Billing", "1st", "a.DQ", "a b", "a\n", "a" * 101, None, 5]),
        *(("schedule", value) for value in ["* * * * *", 30, timedelta(seconds=30), every]),
        *(("max_retries", value) for value in [-1, 1.5, "3", None, True]),
        *(("retry_delay", value) for value in [-SECOND, 60, "60", None, timedelta.max, LONGEST_SPAN + SECOND]),
        *(("backoff", value) for value in ["linear", None, "", 2, ["fixed"]]),
        *(("longest_delay", value) for value in [-SECOND, 60, None, timedelta.max]),
        *(("jitter", value) for value in [1, 0.5, None, "yes"]),
        *(("retry_on", value) for value in [OSError, [OSError], (OSError, "x"), (OSError(),), (int,), None]),
        *(("dead_on", value) for value in [OSError, [OSError], (None,), (int,), "OSError"]),
        *(("expires", value) for value in [timedelta(0), -SECOND, 60, "60", timedelta.max]),
        *(("priority", value) for value in [-1, 10, 11, 1.5, "5", None, True]),
        *(("overlap", value) for value in ["", "deny", True]),
        *(("misfire", value) for value in ["run", 1, "LATEST"]),
        *(("misfire_grace", value) for value in [timedelta(0), 60, None, timedelta.max]),
        *(("soft_limit", value) for value in [timedelta(0), -SECOND, 60, None, timedelta.max]),
        *(("hard_limit", value) for value in [timedelta(0), 60.0, None, timedelta.max]),
        *(("ledger", value) for value in ["no", 0, None]),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_value(option, value):
    options = {"name": "close-day", option: value}

    message = refusal(**options)

    assert message.startswith(f"job {options['name']!r}: {option}={value!r} must be ")
    assert ";" not in message


def test_everything_wrong_is_said_in_one_message():
    def function(run, region, *more):
        pass

    message = refusal(function, name="Bad Name", max_retries=-1, overlap="no", hard_limit=5)

    for part in ("job 'Bad Name'", "name='Bad Name'", "max_retries=-1", "overlap='no'", "hard_limit=5"):
        assert part in message
    assert "parameter region has no type annotation" in message
    assert "parameter more cannot be passed by name" in message


def test_a_soft_limit_longer_than_the_hard_one_is_refused_with_both():
    message = refusal(soft_limit=timedelta(minutes=2), hard_limit=timedelta(minutes=1))

    assert "soft_limit=0:02:00" in message
    assert "hard_limit=0:01:00" in message


def test_a_schedule_on_the_fast_lane_is_refused():
    message = refusal(schedule=every(seconds=30), ledger=False)

    assert "schedule='every 30s'" in message
    assert "ledger=False" in message


async def coroutine(run: Run) -> None: ...


async def asynchronous_generator(run: Run):
    yield


def generator(run: Run):
    yield


def no_parameters() -> None: ...


def another_first(session: Any, run: Run) -> None: ...


def run_by_keyword(*, run: Run) -> None: ...


def run_in_many(*run: Run) -> None: ...


def run_in_keywords(**run: Run) -> None: ...


class Method:
    def method(self, run: Run) -> None: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (coroutine, "the function is async"),
        (asynchronous_generator, "the function is async"),
        (generator, "the function has a yield"),
        (no_parameters, "first parameter must be run"),
        (another_first, "first parameter must be run"),
        (run_by_keyword, "first parameter must be run"),
        (run_in_many, "first parameter must be run"),
        (run_in_keywords, "first parameter must be run"),
        (Method.method, "first parameter must be run"),
        (Method, "must be a function"),
        (None, "function=None must be a function"),
        ("work", "function='work' must be a function"),
    ],
)
def test_a_function_that_cannot_be_called_with_a_run_is_refused(function, problem):
    assert problem in refusal(function)


def positional_only(run: Run, region: str = "uk", /) -> None: ...


def many(run: Run, *regions: str) -> None: ...


def keywords(run: Run, **regions: str) -> None: ...


def unannotated(run: Run, region="uk") -> None: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (positional_only, "parameter region cannot be passed by name"),
        (many, "parameter regions cannot be passed by name"),
        (keywords, "parameter regions cannot be passed by name"),
        (unannotated, "parameter region has no type annotation"),
    ],
)
def test_a_parameter_that_cannot_be_filled_is_refused_by_name(function, problem):
    assert problem in refusal(function)


def with_region(run: Run, region: str) -> None: ...


def with_default_region(run: Run, *, region: str = "uk") -> None: ...


def test_a_scheduled_job_needs_defaults_and_others_do_not():
    assert "parameter region needs a default" in refusal(with_region, schedule=every(seconds=30))
    assert declared(with_region).schedule is None
    assert declared(with_default_region, schedule=every(seconds=30)).schedule == every(seconds=30)


# Delays


def test_a_fixed_delay_is_the_same_after_each_failure():
    found = declared(retry_delay=timedelta(minutes=5))

    assert [found.delay_after(failures) for failures in (1, 2, 3, 100)] == [timedelta(minutes=5)] * 4


def test_an_exponential_delay_doubles_exactly_up_to_a_day():
    found = declared(retry_delay=timedelta(hours=1), backoff="exponential")

    hours = [found.delay_after(failures) / timedelta(hours=1) for failures in (1, 2, 3, 4, 5, 6, 7, 1000)]

    assert hours == [1, 2, 4, 8, 16, 24, 24, 24]


@given(
    delay=st.timedeltas(min_value=timedelta(0), max_value=LONGEST_SPAN),
    failures=st.integers(min_value=1, max_value=10_000),
)
def test_a_delay_never_overflows_shrinks_or_varies(delay, failures):
    found = declared(retry_delay=delay, backoff="exponential")

    waited, next_time = found.delay_after(failures), found.delay_after(failures + 1)

    assert timedelta(0) <= waited <= next_time <= LONGEST_RETRY_DELAY
    assert waited == found.delay_after(failures)


def test_an_exponential_delay_has_the_jobs_own_cap():
    found = declared(retry_delay=SECOND, backoff="exponential", longest_delay=5 * SECOND)

    assert [found.delay_after(failures) / SECOND for failures in (1, 2, 3, 4, 1000)] == [1, 2, 4, 5, 5]


@pytest.mark.parametrize("backoff", ["fixed", "exponential"])
def test_jitter_shortens_a_delay_by_up_to_a_half(backoff):
    delays = {declared(retry_delay=SECOND, backoff=backoff, jitter=True).delay_after(1) for _ in range(100)}

    assert len(delays) > 1
    assert min(delays) >= SECOND / 2
    assert max(delays) <= SECOND


@pytest.mark.parametrize(
    ("rules", "retried", "dead"),
    [
        ({}, [OSError, KeyError, KeyboardInterrupt], []),
        ({"retry_on": (OSError,)}, [OSError, ConnectionError], [KeyError, KeyboardInterrupt]),
        ({"dead_on": (LookupError,)}, [OSError, ValueError], [LookupError, KeyError]),
        ({"retry_on": (OSError,), "dead_on": (ConnectionError,)}, [OSError], [ConnectionError, KeyError]),
        ({"retry_on": (ConnectionError,), "dead_on": (OSError,)}, [], [OSError, ConnectionError]),
    ],
)
def test_the_rules_say_which_errors_are_retried(rules, retried, dead):
    found = declared(**rules)

    assert [found.may_retry(error()) for error in retried] == [True] * len(retried)
    assert [found.may_retry(error()) for error in dead] == [False] * len(dead)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"longest_delay": SECOND}, "longest_delay=0:00:01 needs backoff='exponential'"),
        (
            {"longest_delay": SECOND, "retry_delay": 2 * SECOND, "backoff": "exponential"},
            "longest_delay=0:00:01 must not be shorter than retry_delay=0:00:02",
        ),
        ({"retry_on": (OSError, KeyError), "dead_on": (KeyError,)}, "KeyError must not be both in retry_on and in"),
        ({"retry_on": (OSError,), "ledger": False}, "retry_on must not be given with ledger=False"),
        ({"priority": 5, "ledger": False}, "priority must not be given with ledger=False"),
        ({"overlap": "wait", "ledger": False}, "overlap must not be given with ledger=False"),
        ({"overlap": "skip", "ledger": False}, "overlap must not be given with ledger=False"),
        ({"expires": SECOND, "ledger": False}, "expires must not be given with ledger=False"),
        ({"dead_on": (OSError,), "ledger": False}, "dead_on must not be given with ledger=False"),
    ],
)
def test_retry_rules_that_contradict_each_other_are_refused(options, words):
    assert words in refusal(**options)


@pytest.mark.parametrize("cap", [0, -1, 1_000_001, True, 1.5, "10", None])
def test_a_cap_that_is_none_is_refused(cap):
    with pytest.raises(DeclarationError, match=r"misfire_cap=.* must be a whole number, 1 to 1000000"):
        job("work", misfire_cap=cap)(lambda run: None)


# Defaults of a plugin


def test_defaults_hold_for_each_job_that_says_nothing_else():
    billing = JobDefaults(queue="billing", max_retries=7, retry_delay=5 * SECOND)

    found = billing("close-day", schedule=every(hours=1), max_retries=0)(work)

    assert found == job("close-day", queue="billing", retry_delay=5 * SECOND, schedule=every(hours=1), max_retries=0)(
        work
    )


def test_a_default_for_an_option_that_there_is_not_names_the_nearest():
    with pytest.raises(DeclarationError, match="unknown option 'quue'; did you mean 'queue'"):
        JobDefaults(quue="billing")  # type: ignore[call-arg]


def test_a_wrong_default_is_refused_with_the_job():
    with pytest.raises(DeclarationError, match="job 'close-day': max_retries=-1"):
        JobDefaults(max_retries=-1)("close-day")(work)


def test_there_are_defaults_for_every_option():
    assert set(JobOptions.__annotations__) == set(inspect.signature(job).parameters) - {"name"}


class TestSubject:
    @pytest.mark.parametrize(
        ("subject", "options", "said"),
        [
            ("invites", {}, r"subject='invites' must be Subject\(table, parameter\)"),
            (Subject("Invites; --", "invite_id"), {}, "subject: table='Invites; --' must be a name in lower case"),
            (Subject("invites", "id"), {}, "subject: parameter='id' is not a parameter of the function"),
            (Subject("invites", "invite_id"), {"ledger": False}, "subject must not be given with ledger=False"),
            (
                Subject("invites", "invite_id"),
                {"schedule": every(hours=1)},
                "subject needs arguments, and a schedule passes none; drop one of them",
            ),
        ],
    )
    def test_a_subject_that_cannot_be_looked_up_is_refused(self, subject, options, said):
        with pytest.raises(DeclarationError, match=said):

            @job("invite", subject=subject, **options)
            def invite(run, invite_id: int = 1):
                pass

    def test_a_secret_subject_is_refused_since_it_is_shown(self):
        @job("invite", subject=Subject("invites", "code"))
        def invite(run, code: Annotated[str, Secret]):
            pass

        with pytest.raises(DeclarationError, match="code cannot be Secret, since subject shows it"):
            checked([invite])


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "options", "said"),
        [
            ("smtp", {}, r"limits='smtp' must be a list of Limit\("),
            (["smtp"], {}, "limits=.* must be a list of Limit"),
            ([Limit("imap:{port}", at_once=1)], {}, "'imap:{port}' names port, which is not a parameter"),
            ([Limit("imap:{host", at_once=1)], {}, "name='imap:{host' must be 1 to 200 characters"),
            ([Limit("", at_once=1)], {}, "name='' must be 1 to 200 characters"),
            ([Limit("smtp", at_once=0)], {}, "'smtp': at_once=0 must be a whole number, 1 to"),
            ([Limit("smtp", at_once=True)], {}, "at_once=True must be a whole number"),
            ([Limit("smtp", most=0, per=timedelta(seconds=1))], {}, "most=0 must be a whole number"),
            ([Limit("smtp", most=1, per=timedelta(0))], {}, "per=.* must be a timedelta of up to 31 days"),
            ([Limit("smtp", most=1, per=60)], {}, "per=60 must be a timedelta"),
            ([Limit("smtp")], {}, "'smtp' must have either at_once, or most and per; it has neither"),
            ([Limit("smtp", most=1)], {}, "must have either at_once, or most and per; it has most"),
            (
                [Limit("smtp", at_once=1, most=1, per=timedelta(seconds=1))],
                {},
                "must have either at_once, or most and per; it has at_once, most, per",
            ),
            ([Limit("smtp", at_once=1), Limit("smtp", at_once=2)], {}, "limits: 'smtp' must be given once only"),
            ([Limit("smtp", at_once=1)], {"ledger": False}, "limits must not be given with ledger=False"),
        ],
    )
    def test_a_limit_that_contradicts_itself_is_refused(self, limits, options, said):
        with pytest.raises(DeclarationError, match=said):

            @job("fetch", limits=limits, **options)
            def fetch(run, host: str = "a"):
                pass

    def test_a_limit_must_not_show_a_secret(self):
        @job("fetch", limits=[Limit("imap:{password}", at_once=1)])
        def fetch(run, password: Annotated[str, Secret]):
            pass

        with pytest.raises(DeclarationError, match="password cannot be Secret, since limit"):
            refuse_wrong_secrets(fetch)

    def test_a_name_is_filled_from_arguments_and_defaults(self):
        @job("fetch", limits=[Limit("{host}:{port}/{tls}", at_once=1), Limit("smtp", at_once=1)])
        def fetch(run, host: str, port: int = 993, tls: bool = True):
            pass

        assert fetch.limit_names({"host": "é", "tls": False}) == ["é:993/false", "smtp"]
        assert fetch.limit_names({}) == ["{host}:{port}/{tls}", "smtp"], "it cannot start, whatever its limits are"

    def test_long_values_stay_different(self):
        limit = Limit("imap:{host}", at_once=1)

        filled = {limit.filled({"host": "x" * 10_000 + end}) for end in "abc"}

        assert len(filled) == 3
        assert {len(name) for name in filled} == {300}
