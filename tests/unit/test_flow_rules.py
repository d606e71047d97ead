"""The rules of flow control in ``tests/faults``, on histories made by hand."""

from datetime import timedelta

import pytest

from tests.faults import flow_rules
from tests.faults.history import Cancel, Change, KeptAttempt, Presence
from tests.support.fault_story import Story, at, worked


@pytest.fixture
def story() -> Story:
    return Story()


class TestOrder:
    @pytest.mark.parametrize(("key", "found"), [("a", {"order"}), ("b", set())])
    def test_of_due_times(self, story, key, found):
        worked(story, key=key, queued=0, due=0, begin=7, end=8)
        worked(story, key="a", queued=1, due=1, begin=5, end=6)

        assert story.kinds() == found

    @pytest.mark.parametrize(("due", "found"), [(2, {"order"}), (3, set())])
    def test_of_due_times_before_that_of_ids(self, story, due, found):
        worked(story, due=due, begin=7, end=8)
        worked(story, due=2, begin=5, end=6)

        assert story.kinds() == found

    def test_not_if_the_first_was_committed_just_before(self, story):
        worked(story, queued=4.5, begin=7, end=8)
        worked(story, queued=1, due=1, begin=5, end=6)

        assert story.kinds() == set()

    @pytest.mark.parametrize(("reason", "found"), [("worker died", {"order"}), ("error", set())])
    def test_a_crash_keeps_the_place_and_a_failure_with_a_delay_gives_it_up(self, story, reason, found):
        first, second = story.run(), story.run(queued=1, due=1)
        story.claim(first, 2)
        if reason == "error":
            story.fail(first, 3, due=8)
        else:
            story.crash(first, 3)
        story.claim(second, 5)
        story.succeed(second, 6)
        story.claim(first, 9)
        story.succeed(first, 10)

        assert story.kinds() == found

    def test_a_run_that_is_over_before_is_in_nobodys_way(self, story):
        cancelled = story.run()
        story.history.cancels.append(Cancel(cancelled, "queued", at(3)))
        story.end(cancelled, 3, "dead", "cancelled")
        worked(story, queued=1, due=1, begin=5, end=6)

        assert story.kinds() == set()


class TestPlaces:
    @pytest.mark.parametrize(
        ("job", "reason", "found"),
        [
            ("work", "stopped", {"place lost"}),
            ("work", "worker died", {"place lost"}),
            ("work", "no connection", {"place lost"}),
            ("work", "error", set()),
            ("turn", "error", {"place lost"}),
            ("work", "later", set()),
        ],
    )
    def test_a_due_time_that_moves(self, story, job, reason, found):
        run_id = story.run(job)
        story.claim(run_id, 1)
        if reason == "later":
            story.postpone(run_id, 2, due=3)
        else:
            counted = {"error": "failures", "worker died": "crashes"}.get(reason)
            if counted:
                story._update(run_id, **{counted: 1})
            story.end(run_id, 2, "retrying", reason, due=3)
        story.claim(run_id, 4)
        story.succeed(run_id, 5)

        assert story.kinds() == found


class TestTurns:
    @pytest.mark.parametrize(("begin", "found"), [(10, set()), (25, {"turn late"})])
    def test_a_run_starts_soon_after_the_one_before(self, story, begin, found):
        worked(story, begin=1, end=9)
        worked(story, due=1, begin=begin, end=26)

        assert story.kinds() == found

    def test_not_if_a_fault_is_in_its_way(self, story):
        worked(story, begin=1, end=9)
        worked(story, due=1, begin=25, end=26)
        story.fault("Redis away", 10, 20)

        assert story.kinds() == set()

    def test_not_before_it_is_due(self, story):
        worked(story, due=24, begin=25, end=26)

        assert story.kinds() == set()

    def test_a_run_that_waits_for_its_turn_is_not_interrupted_by_a_fault(self, story):
        story.fault("PostgreSQL restarted", 1, 2, bound_seconds=3, counts_from_heal=True)
        worked(story, begin=1, end=30)
        worked(story, due=1, begin=30.5, end=31)

        assert story.kinds() == set()


class TestSlots:
    def test_a_request_is_not_skipped(self, story):
        worked(story, begin=1, end=9)
        story.end(story.run(queued=2), 3, "skipped", "overlap")

        assert story.kinds() == {"request skipped"}

    @pytest.mark.parametrize(("reason", "found"), [("overlap", {"tried and missed"}), (None, set())])
    def test_a_slot_that_was_tried_is_not_missed(self, story, reason, found):
        slot = story.run("slot", slot=0)
        if reason:
            story.note(slot, 1, reason)
        story.end(slot, 40, "missed", "superseded")

        assert story.kinds() == found

    @pytest.mark.parametrize(("job", "found"), [("steady", set()), ("slot", {"skipped"})])
    def test_a_newer_slot_replaces_an_older_one_where_slots_wait(self, story, job, found):
        older = story.run(job, slot=0)
        worked(story, job, slot=5, queued=5, due=5, begin=7, end=8)
        story.end(older, 6, "skipped", "superseded")

        assert story.kinds() == found

    def test_a_slot_that_no_newer_one_replaces(self, story):
        story.end(story.run("steady", slot=0), 6, "skipped", "superseded")

        assert story.kinds() == {"skipped"}


class TestCancels:
    def test_a_run_that_leaves_soon(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.cancel(run_id, 2)
        story.end(run_id, 2.5, "dead", "cancelled")

        assert story.kinds() == set()

    def test_a_run_that_commits(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        token = story._token
        story.cancel(run_id, 2)
        story.effect(run_id, 3, kind="step", token=token)
        story.end(run_id, 4, "dead", "cancelled")

        assert story.kinds() == {"unfenced"}

    def test_a_run_that_succeeds(self, story):
        run_id = story.run("light")
        story.claim(run_id, 1)
        story.cancel(run_id, 2)
        story.end(run_id, 3, "succeeded")

        assert story.kinds() == {"cancel undone"}

    def test_a_run_that_starts_again(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.cancel(run_id, 2)
        story.crash(run_id, 3)
        story.claim(run_id, 4)
        story.succeed(run_id, 5)

        assert story.kinds() == {"cancel undone"}

    def test_a_run_that_takes_long_to_leave(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.cancel(run_id, 2)
        story.end(run_id, 30, "dead", "cancelled")

        assert story.kinds() == {"cancel late"}

    def test_a_run_that_nobody_cancelled(self, story):
        story.end(story.run(), 3, "dead", "cancelled")

        assert story.kinds() == {"cancelled by nobody"}

    @pytest.mark.parametrize(("left", "found"), [(4, set()), (8, {"overlap"})])
    def test_its_key_is_held_until_its_function_has_left(self, story, left, found):
        run_id = story.run()
        story.claim(run_id, 1)
        story.history.presences.append(Presence(run_id, story._token, at(1), at(left)))
        story.cancel(run_id, 2)
        story.end(run_id, 4, "dead", "cancelled")
        other = worked(story, due=2, begin=5, end=6)
        story.history.presences.append(Presence(other, story._token, at(5), at(6)))

        assert story.kinds() == found

    def test_not_if_its_process_has_lost_its_lease(self, story):
        run_id = story.run()
        story.claim(run_id, 1, pid=7)
        story.history.presences.append(Presence(run_id, story._token, at(1), at(8)))
        story.cancel(run_id, 2)
        story.end(run_id, 4, "dead", "cancelled")
        other = worked(story, due=2, begin=5, end=6)
        story.history.presences.append(Presence(other, story._token, at(5), at(6)))
        story.fault("paused past its lease", 2, 8, pids=frozenset({7}))

        assert story.kinds() == set()


class TestDeadlines:
    @pytest.mark.parametrize(("second", "found"), [(3, set()), (9, {"started late"})])
    def test_a_run_starts_by_then(self, story, second, found):
        worked(story, begin=second, end=10, expires_at=at(4))

        assert story.kinds() == found

    @pytest.mark.parametrize(("second", "found"), [(3, {"expired"}), (5, set())])
    def test_it_is_missed_only_afterwards(self, story, second, found):
        story.end(story.run(expires_at=at(4)), second, "missed", "expired")

        assert story.kinds() == found

    def test_it_is_not_missed_after_its_first_start(self, story):
        run_id = story.run(expires_at=at(4))
        story.claim(run_id, 1)
        story.fail(run_id, 2, due=5)
        story.end(run_id, 6, "missed", "expired")

        assert story.kinds() == {"expired", "retry dropped"}


class TestLater:
    def postponed(self, story: Story, due: float = 3, **values) -> int:
        run_id = story.run("free", **values)
        story.claim(run_id, 1)
        story.postpone(run_id, 2, due=due)
        return run_id

    def test_is_no_failure(self, story):
        run_id = self.postponed(story)
        story.claim(run_id, 3)
        story.succeed(run_id, 4)

        assert story.kinds() == set()

    def test_is_counted(self, story):
        run_id = self.postponed(story)
        story._update(run_id, laters=0)
        story.claim(run_id, 3)
        story.succeed(run_id, 4)

        assert story.kinds() == {"later miscounted"}

    def test_does_not_go_past_the_deadline(self, story):
        run_id = self.postponed(story, due=9, expires_at=at(4))
        story.claim(run_id, 9)
        story.succeed(run_id, 10)

        assert story.kinds() == {"later unbounded"}

    @pytest.mark.parametrize(("values", "found"), [({}, {"later dead"}), ({"expires_at": at(4)}, set())])
    def test_ends_a_run_at_its_deadline_only(self, story, values, found):
        run_id = self.postponed(story, **values)
        story.claim(run_id, 3)
        story.postpone(run_id, 3.5, due=3, state="dead")

        assert story.kinds() == found


class TestRetryRules:
    @pytest.mark.parametrize(("raises", "found"), [("hopeless", set()), ("busy", {"retry dropped"})])
    def test_a_run_that_is_dead_at_once(self, story, raises, found):
        run_id = story.run("free", args={"raises": raises})
        story.claim(run_id, 1)
        story.fail(run_id, 2, state="dead", reason="no retry")

        assert story.kinds() == found

    def test_a_run_that_is_tried_again(self, story):
        run_id = story.run("free", args={"raises": "other"})
        story.claim(run_id, 1)
        story.fail(run_id, 2)
        story.claim(run_id, 3)
        story.succeed(run_id, 4)

        assert story.kinds() == {"tried again"}


class TestSubjects:
    @pytest.mark.parametrize(
        ("subject", "removed", "found"),
        [(7, None, {"orphaned"}), (-7, None, set()), (7, 1, set()), (7, 5, {"orphaned"})],
    )
    def test_a_run_is_orphaned_if_its_row_is_away(self, story, subject, removed, found):
        run_id = story.run("free", args={"subject": subject})
        story.claim(run_id, 1)
        story._update(run_id, attempt=0)
        story._change(run_id, 2, "running", "orphaned", reason="no subject", token=None)
        story._update(run_id, finished_at=at(2))
        if removed:
            story.history.removed = {subject: at(removed)}

        assert story.kinds() == found

    @pytest.mark.parametrize(("subject", "found"), [(7, set()), (-7, {"subject ignored"})])
    def test_a_run_works_if_its_row_is_there(self, story, subject, found):
        worked(story, "free", args={"subject": subject})

        assert story.kinds() == found


@pytest.mark.parametrize(("is_seen", "found"), [(True, set()), (False, {"change missed"})])
def test_a_change_for_which_a_run_was_found_waiting(story, is_seen, found):
    story.history.changes.append(Change(worked(story), 1, is_seen))

    assert story.kinds() == found


class TestKeptAttempts:
    def test_one_that_is_not_there(self, story):
        run_id = story.run()
        story.claim(run_id, 1)
        story.fail(run_id, 2, due=3)
        story.claim(run_id, 3)
        story.succeed(run_id, 4)
        del story.history.kept[0]

        assert story.kinds() == {"attempt not kept"}

    def test_a_success_of_a_first_attempt_is_not_kept(self, story):
        story.history.kept.append(KeptAttempt(worked(story), 1, "succeeded"))

        assert story.kinds() == {"attempt not kept"}


class TestLimits:
    @pytest.mark.parametrize(
        ("host", "begin", "found"), [("a", 3, {"limit exceeded"}), ("b", 3, set()), ("a", 5, set())]
    )
    def test_so_many_at_once_of_one_name(self, story, host, begin, found):
        for limit in ("a", "a", host):
            third = len(story.history.runs) == 2
            worked(story, "limited", limits=[limit], begin=begin if third else 1, end=6 if third else 4)

        assert story.kinds() == found

    def test_as_a_run_has_seen(self, story):
        story.history.uses.append((worked(story, "limited", limits=["a"]), 3))

        assert story.kinds() == {"limit exceeded"}

    @pytest.mark.parametrize(
        ("starts", "found"), [((1, 1, 1), set()), ((1, 1, 1, 2), {"pace exceeded"}), ((1, 1, 1, 6), set())]
    )
    def test_so_many_starts_within_a_time(self, story, starts, found):
        for begin in starts:
            worked(story, "paced", limits=["pace"], begin=begin, end=9)

        assert story.kinds() == found

    @pytest.mark.parametrize(("token", "found"), [(None, set()), (1, {"pace exceeded"})])
    def test_a_start_that_was_undone_before_the_function_was_called_does_not_count(self, story, token, found):
        undone = story.run("paced", limits=["pace"])
        story.claim(undone, 1)
        story._change(undone, 1.1, "running", "queued", reason="arguments", token=token)
        for _ in range(3):
            worked(story, "paced", limits=["pace"], begin=1.2, end=9)
        story.claim(undone, 8)
        story.succeed(undone, 9)

        assert story.kinds() & {"pace exceeded"} == found


def test_the_turn_of_a_run_comes_with_the_end_of_the_one_before(story):
    worked(story, begin=1, end=9)
    run_id = worked(story, due=1, begin=10, end=11)
    stays = [stay for run in story.history.runs for stay in flow_rules.stays_of(story.history, run)]
    spans = [span for run in story.history.runs for span in flow_rules.spans_of(story.history, run)]
    (stay,) = [stay for stay in stays if stay.run_id == run_id]

    assert flow_rules.turn_of(stay, spans, stays) == at(9)
    assert stay.end is not None
    assert stay.end.at - at(9) == timedelta(seconds=1)
