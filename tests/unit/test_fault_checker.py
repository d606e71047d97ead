"""The checker of ``tests/faults``, on histories made by hand: it finds each kind of violation, and no violation
otherwise.
"""

import pytest

from tests.faults import report
from tests.faults.checker import check, recoveries
from tests.faults.history import BACKLOG, BY_A_CHILD, OF_A_CHILD, Letter, ProcessEvent
from tests.support.fault_story import Story, at, worked


@pytest.fixture
def story() -> Story:
    return Story()


def test_in_a_clean_history_with_everything_in_it_nothing_is_found(story):
    story.history.until = at(10)
    for slot in (0, 5):
        worked(story, "tick", slot=slot, begin=slot + 0.1, end=slot + 0.2)
        worked(story, "slot", slot=slot, begin=slot + 0.1, end=slot + 0.2)
    retried = story.run()
    story.claim(retried, 1)
    story.fail(retried, 2)
    story.claim(retried, 3)
    story.effect(retried, 3.1, kind="step")
    story.crash(retried, 4)
    story.claim(retried, 5)
    story.effect(retried, 5.1, kind="step", step=1)
    story.succeed(retried, 6)
    skipped = story.run(slot=5, queued=5.5)
    story.end(skipped, 5.6, "skipped", "overlap")
    hopeless = story.run("hopeless")
    story.claim(hopeless, 1)
    story.fail(hopeless, 2)
    story.claim(hopeless, 3)
    story.fail(hopeless, 4, state="dead", reason="retries")
    poison = story.run("poison")
    for second in (1, 3, 5):
        story.claim(poison, second)
        story.crash(poison, second + 1, **({"state": "dead", "reason": "crashes"} if second == 5 else {}))
    story.history.acknowledged = story.history.requested = [retried, skipped, hopeless, poison]
    story.history.letters, story.history.received = [Letter(0, at(1))], [0, 0]

    assert check(story.history) == []


class TestLost:
    def test_a_committed_run_that_is_not_there(self, story):
        story.history.acknowledged = [99]

        assert story.kinds() == {"lost"}

    def test_a_run_whose_request_is_there_and_which_is_not(self, story):
        story.history.requested = [99]

        assert story.kinds() == {"lost"}

    def test_an_acknowledged_request_that_is_gone_with_its_run_there(self, story):
        story.history.acknowledged = [worked(story)]

        assert story.kinds() == {"lost"}

    def test_a_message_of_the_fast_lane(self, story):
        story.history.letters = [Letter(0, at(5))]

        assert story.kinds() == {"letter lost"}

    def test_not_one_that_redis_lost(self, story):
        story.history.letters = [Letter(0, at(5))]
        story.fault("Redis wiped", 6, 6, wipes_redis=True)

        assert story.kinds() == set()

    def test_one_that_was_sent_after_redis_lost_others(self, story):
        story.history.letters = [Letter(0, at(9))]
        story.fault("Redis wiped", 6, 6, wipes_redis=True)

        assert story.kinds() == {"letter lost"}


class TestSlots:
    def test_one_without_a_row(self, story):
        story.history.until = at(10)
        worked(story, "tick", slot=0)
        worked(story, "slot", slot=0)
        worked(story, "slot", slot=5, begin=6, end=7)

        assert story.kinds() == {"slot lost"}

    def test_one_with_two(self, story):
        worked(story, "tick", slot=0)
        worked(story, "tick", slot=0)

        assert story.kinds() == {"slot doubled"}

    def test_a_row_for_what_is_no_slot(self, story):
        worked(story, "tick", slot=3)

        assert story.kinds() == {"slot invented"}

    def test_one_that_was_missed_and_may_not_be(self, story):
        run_id = story.run("tick", slot=0)
        story.end(run_id, 40, "missed", "superseded")

        assert story.kinds() == {"missed"}

    def test_one_that_was_missed_and_was_not_late(self, story):
        run_id = story.run("slot", slot=0)
        story.end(run_id, 4, "missed", "superseded")

        assert story.kinds() == {"missed"}

    def test_not_one_that_was_late(self, story):
        run_id = story.run("slot", slot=0)
        story.end(run_id, 40, "missed", "superseded")

        assert story.kinds() == set()


class TestOnce:
    def test_two_effects(self, story):
        run_id = worked(story)
        story.effect(run_id, 2)

        assert "doubled" in story.kinds()

    def test_a_batch_that_was_committed_twice(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.effect(run_id, 1.1, kind="step")
        story.effect(run_id, 1.2, kind="step")
        story.succeed(run_id, 2)

        assert story.kinds() == {"doubled"}

    def test_an_effect_of_a_run_that_did_not_succeed(self, story):
        run_id = story.run("hopeless")
        story.claim(run_id, 1)
        story.effect(run_id, 1.5)
        story.fail(run_id, 2)
        story.claim(run_id, 3)
        story.fail(run_id, 4, state="dead", reason="retries")

        assert story.kinds() == {"effect without success"}

    def test_an_effect_without_a_run(self, story):
        story.effect(99, 1)

        assert "effect without success" in story.kinds()

    def test_success_without_an_effect(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.end(run_id, 2, "succeeded")

        assert story.kinds() == {"success without effect"}

    def test_success_of_what_cannot_succeed(self, story):
        worked(story, "hopeless")

        assert story.kinds() == {"success without effect"}

    def test_success_and_effect_in_two_transactions(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.effect(run_id, 1.9)
        story.end(run_id, 2, "succeeded")

        assert story.kinds() == {"torn"}

    def test_a_run_that_goes_on_after_its_end(self, story):
        run_id = worked(story)
        story.claim(run_id, 3)
        story.end(run_id, 4, "succeeded")

        assert "illegal" in story.kinds()


class TestFences:
    def test_a_batch_committed_after_the_lease_had_ended(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.crash(run_id, 5)
        story.claim(run_id, 6)
        story.succeed(run_id, 7)
        story.effect(run_id, 8, kind="step", token=1)

        assert story.kinds() == {"unfenced"}

    def test_an_effect_of_a_token_that_was_never_drawn(self, story):
        run_id = worked(story)
        story.effect(run_id, 1.5, kind="step", token=77)

        assert story.kinds() == {"unfenced"}

    def test_a_token_that_is_not_greater(self, story):
        run_id = story.run()
        story.claim(run_id, 1, token=5)
        story.crash(run_id, 2)
        story.claim(run_id, 3, token=4)
        story.succeed(run_id, 4)

        assert story.kinds() == {"token"}

    def test_a_token_drawn_twice(self, story):
        for key in "ab":
            run_id = story.run(key=key)
            story.claim(run_id, 1, token=5)
            story.succeed(run_id, 2)

        assert story.kinds() == {"token"}


class TestOverlap:
    def test_two_at_once_of_one_key(self, story):
        worked(story, begin=1, end=3)
        worked(story, begin=2, end=4)

        assert story.kinds() == {"overlap"}

    def test_a_long_one_over_two_short_ones(self, story):
        worked(story, begin=1, end=9)
        worked(story, begin=2, end=3)
        worked(story, begin=4, end=5)

        assert [violation.kind for violation in check(story.history)].count("overlap") >= 2

    def test_not_of_two_keys_and_not_where_it_is_allowed(self, story):
        worked(story, key="a", begin=1, end=3)
        worked(story, key="b", begin=2, end=4)
        worked(story, "tick", begin=1, end=3, slot=-5)
        worked(story, "tick", begin=2, end=4, slot=-10)

        assert story.kinds() == set()

    def test_one_that_was_skipped_beside_no_other(self, story):
        worked(story, begin=1, end=2)
        story.end(story.run(slot=5, queued=5), 5, "skipped", "overlap")

        assert story.kinds() == {"skipped"}


class TestAttempts:
    @pytest.mark.parametrize("count", ["attempt", "failures", "crashes"])
    def test_one_that_was_not_counted(self, story, count):
        run_id = worked(story)
        story._update(run_id, **{count: 7})

        assert story.kinds() == {"miscounted"}

    def test_a_retry_that_was_dropped_for_its_slot(self, story):
        run_id = story.run("slot", slot=0)
        story.claim(run_id, 1)
        story.fail(run_id, 2)
        story.end(run_id, 40, "missed", "superseded")

        assert story.kinds() == {"retry dropped", "tried and missed"}

    def test_a_run_that_died_with_retries_left(self, story):
        run_id = story.run("hopeless")
        story.claim(run_id, 1)
        story.fail(run_id, 2, state="dead", reason="retries")

        assert story.kinds() == {"retry dropped"}

    def test_a_run_that_used_up_its_retries_and_should_not_have_failed(self, story):
        run_id = story.run()
        for second in (1, 3, 5):
            story.claim(run_id, second)
            story.fail(run_id, second + 1)
        story.claim(run_id, 7)
        story.fail(run_id, 8, state="dead", reason="retries")

        assert story.kinds() == {"died"}

    def test_a_run_that_is_orphaned_while_all_have_its_job(self, story):
        story.end(story.run(), 1, "orphaned", "unknown")

        assert story.kinds() == {"orphaned"}

    @pytest.mark.parametrize("state", ["queued", "running", "retrying"])
    def test_one_that_has_not_ended_when_all_has_settled(self, story, state):
        run_id = story.run()
        if state != "queued":
            story.claim(run_id, 1)
        if state == "retrying":
            story.crash(run_id, 2)

        assert story.kinds() == {"stuck"}


class TestPoison:
    def crashed(self, story: Story, job: str, times: int = 3) -> int:
        run_id = story.run(job)
        for number in range(times):
            last = {"state": "dead", "reason": "crashes"} if number == times - 1 else {}
            story.claim(run_id, 20 * number + 20, pid=number + 1)
            story.crash(run_id, 20 * number + 21, **last)
        return run_id

    def test_that_succeeds(self, story):
        worked(story, "poison")

        assert "poison" in story.kinds()

    def test_that_is_dead_too_early(self, story):
        self.crashed(story, "poison", times=2)

        assert story.kinds() == {"poison"}

    def test_another_run_that_died_beside_it(self, story):
        self.crashed(story, "free")

        assert story.kinds() == {"poison"}

    def test_not_one_whose_last_process_was_hit_by_a_fault(self, story):
        self.crashed(story, "free")
        story.fault("worker killed", 60.5, 60.5, pids=frozenset({3}))

        assert story.kinds() == set()


class TestRecovery:
    def interrupted(self, story: Story, again: float) -> None:
        run_id = story.run()
        story.claim(run_id, 1, pid=7)
        story.crash(run_id, again - 0.5)
        story.claim(run_id, again, pid=8)
        story.succeed(run_id, again + 1)
        story.fault("worker killed", 2, 2, pids=frozenset({7}), bound_seconds=3)

    def test_is_measured_from_the_fault_to_the_next_claim(self, story):
        self.interrupted(story, again=4)

        (recovery,) = recoveries(story.history)
        assert (recovery.seconds, recovery.is_disturbed) == (2.0, False)
        assert story.kinds() == set()

    def test_that_takes_too_long(self, story):
        self.interrupted(story, again=40)

        assert story.kinds() == {"late"}

    def test_not_if_another_fault_was_in_its_way(self, story):
        self.interrupted(story, again=40)
        story.fault("PostgreSQL restarted", 3, 30)

        assert story.kinds() == set()

    @pytest.mark.parametrize(("kind", "kinds"), [("PostgreSQL crashed", set()), ("Redis wiped", {"late"})])
    def test_not_if_dispatchers_were_patient_after_an_outage(self, story, kind, kinds):
        self.interrupted(story, again=20)
        story.fault(kind, -10, -9)

        assert story.kinds() == kinds

    def test_not_if_another_process_died_meanwhile(self, story):
        self.interrupted(story, again=40)
        story.history.processes.append(ProcessEvent(at(5), "worker-0", 9, "ended"))

        assert story.kinds() == set()


def test_the_report_of_a_violation_names_its_seed_and_tells_all_of_its_run(story):
    run_id = worked(story)
    story.effect(run_id, 2)
    story.fault("worker killed", 1.5, 1.5, target="worker-2", pids=frozenset({7}))

    told = "\n".join(report.story(story.history, check(story.history)))

    assert "SEED 1" in told
    for word in ("queued -> running", "running -> succeeded", "effect done 0", "FAULT worker killed on worker-2"):
        assert word in told


class TestCharged:
    @pytest.mark.parametrize(
        ("error", "found"),
        [
            (
                'OperationalError: connection to server on socket "x" failed: FATAL: the database is starting',
                {"charged"},
            ),
            ("TimeoutError: QueuePool limit of size 20 overflow 0 reached", {"charged"}),
            ('OperationalError: prepared statement "rota_succeed" does not exist', {"charged"}),
            ("OperationalError: server closed the connection unexpectedly", set()),
        ],
    )
    def test_a_failure_that_is_not_the_jobs(self, story, error, found):
        run_id = story.run()
        story.claim(run_id, 1)
        story.fail(run_id, 2, error=error)
        story.claim(run_id, 3)
        story.succeed(run_id, 4)

        assert story.kinds() == found

    @pytest.mark.parametrize(
        ("others", "found"), [([], {"charged"}), (["PostgreSQL crashed"], set()), (["worker killed"], set())], ids=str
    )
    def test_a_crash_that_was_a_stall(self, story, others, found):
        run_id = story.run()
        story.claim(run_id, 1, pid=7)
        for kind in ["PostgreSQL stalled", *others]:
            story.fault(kind, 2, 9, pids=frozenset({7} if kind == "worker killed" else ()))
        story.crash(run_id, 10)
        story.claim(run_id, 11)
        story.succeed(run_id, 12)

        assert story.kinds() == found

    def test_not_a_crash_of_a_run_that_kills_its_process(self, story):
        run_id = story.run("poison")
        for second in (1, 11, 21):
            story.claim(run_id, second, pid=second)
            story.crash(run_id, second + 1, **({"state": "dead", "reason": "crashes"} if second == 21 else {}))
        story.fault("PostgreSQL stalled", 2, 9)

        assert story.kinds() == set()

    def test_a_crash_of_a_process_that_ended_with_its_command_beside_a_stall(self, story):
        run_id = story.run()
        for name, pid in (("worker-0", 5), ("scheduler-0", 6), ("worker-1", 9)):
            story.history.processes.append(ProcessEvent(at(0), name, pid, "started"))
        story.claim(run_id, 1, pid=7)
        story.fault("PostgreSQL stalled", 2, 9)
        story.history.processes.append(ProcessEvent(at(9.5), "worker-0", 5, "ended with status 1"))
        story.crash(run_id, 10)
        story.claim(run_id, 11)
        story.succeed(run_id, 12)

        assert story.kinds() == set()


class TestForkedChild:
    def test_an_outcome_of_a_child(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.fail(run_id, 2, error=f"RuntimeError: {OF_A_CHILD}")
        story.claim(run_id, 3)
        story.succeed(run_id, 4)

        assert story.kinds() == {"child"}

    def test_an_effect_of_a_child(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.effect(run_id, 1.5, kind=BY_A_CHILD)
        story.succeed(run_id, 2)

        assert story.kinds() == {"child"}


def test_a_session_that_another_run_has_changed(story):
    run_id = story.run()
    story.claim(run_id, 1)
    story.effect(run_id, 1.5, kind="step", found="time zone")
    story.succeed(run_id, 2)

    assert story.kinds() == {"unclean"}


def test_a_session_that_another_run_has_left_read_only(story):
    run_id = story.run()
    story.claim(run_id, 1)
    story.fail(run_id, 2, error="InternalError: cannot execute INSERT in a read-only transaction")
    story.claim(run_id, 3)
    story.succeed(run_id, 4)

    assert story.kinds() == {"unclean"}


def test_a_success_that_leaves_nothing_where_none_is_expected(story):
    run_id = story.run("light")
    story.claim(run_id, 1)
    story.end(run_id, 2, "succeeded")

    assert story.kinds() == set()


class TestRefused:
    def test_it_is_dead_at_the_first_refusal(self, story):
        run_id = story.run("refused")
        story.claim(run_id, 1)
        story.fail(run_id, 2, state="dead", reason="result")

        assert story.kinds() == set()

    @pytest.mark.parametrize(("reason", "found"), [("retries", {"refused"}), ("result", {"refused"})])
    def test_it_was_tried_again(self, story, reason, found):
        run_id = story.run("refused")
        story.claim(run_id, 1)
        story.fail(run_id, 2)
        story.claim(run_id, 3)
        story.fail(run_id, 4, state="dead", reason=reason)

        assert story.kinds() == found

    def test_another_run_dies_of_its_result(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.fail(run_id, 2, state="dead", reason="result")

        assert story.kinds() == {"retry dropped"}


class TestBacklog:
    @pytest.mark.parametrize(("start", "found"), [(4, set()), (17, {"crowded out"})])
    def test_a_run_of_another_queue_waits(self, story, start, found):
        story.fault(BACKLOG, 1, 20)
        worked(story, queued=2, begin=start, end=start + 1)

        assert story.kinds() == found

    def test_another_fault_is_in_its_way(self, story):
        story.fault(BACKLOG, 1, 20)
        story.fault("PostgreSQL crashed", 5, 8)
        worked(story, queued=2, begin=17, end=18)

        assert story.kinds() == set()

    def test_a_run_that_came_due_after_it(self, story):
        story.fault(BACKLOG, 1, 4)
        worked(story, queued=5, begin=20, end=21)

        assert story.kinds() == set()


@pytest.mark.parametrize(("second", "found"), [(4, set()), (9, {"skipped"})])
def test_a_slot_is_skipped_while_an_earlier_one_is_to_be_tried_again(story, second, found):
    earlier = story.run("slot", slot=0)
    story.claim(earlier, 1)
    story.fail(earlier, 2)
    later = story.run("slot", slot=5, queued=3)
    story.end(later, second, "skipped", "retrying")
    story.claim(earlier, 6)
    story.succeed(earlier, 7)

    assert story.kinds() & {"skipped"} == found
