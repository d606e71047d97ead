"""The geometry of strips, with exact values."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from core.ledger.pauses import Pause
from core.operations import strip_windows
from core.operations.slot_cells import Stretch
from core.operations.strips import Board, Drawn, Mark, Strip
from core.web.pages import strip_drawing
from core.web.pages.strip_drawing import Scale, Shape

NOW = datetime(2026, 11, 27, 20, 24, 18, tzinfo=UTC)
LONDON = ZoneInfo("Europe/London")
SLOT = datetime(2026, 11, 27, 19, tzinfo=UTC)


@pytest.fixture
def scale():
    return Scale(strip_windows.window("24h", NOW, LONDON), LONDON)


def drawn(*stretches, is_exact=False, held=()):
    strip = Strip.model_construct(job="close-day", key="")
    return Drawn(strip, is_exact, tuple(stretches), held)


def svg(scale, *stretches, **options):
    found = drawn(*stretches, **options)
    return str(strip_drawing.strip(found, scale, lambda _strip, stretch: f"/why?at={stretch.run}", has_tips=False))


def event(outcome, *cells, count=1, reason=None):
    return Stretch(outcome, cells, count, count, reason, SLOT, SLOT, 7)


def test_an_hour_is_28_pixels_and_a_bin_7(scale):
    assert scale.x(scale.window.after + timedelta(hours=1)) == 28
    assert scale.bounds(1, 12, is_exact=False) == (7, 13)


@pytest.mark.parametrize(
    ("minutes", "width"),
    [(10, 3.67), (15, 6), (60, 12), (1440, 12)],
)
def test_a_cell_of_its_own_is_as_wide_as_fits(minutes, width):
    cells = tuple(range(0, 86400, minutes * 60))

    assert strip_drawing.width_of(drawn(Stretch("succeeded", cells, 9, 9), is_exact=True)) == pytest.approx(
        width, abs=0.01
    )


def test_successes_are_one_dashed_line(scale):
    found = svg(scale, Stretch("succeeded", tuple(range(94)), 94, 94))

    assert '<path class="l-ok" stroke-width="13" stroke-dasharray="6.000 1.000" d="M0 25.5H657"/>' in found
    assert found.count("<path") == 2  # and the line of account


def test_slots_that_are_not_evenly_spaced_have_a_box_each(scale):
    second = strip_windows.second(scale.window.after)

    found = svg(scale, Stretch("succeeded", (second, second + 3600, second + 9000), 3, 3), is_exact=True)

    assert 'd="M0 19h12v13H0zM28 19h12v13H28zM70 19h12v13H70z"' in found


@pytest.mark.parametrize(
    ("outcome", "drawing"),
    [
        ("dead", '<path class="f-dead" d="M70 14h6v18H70z"/>'),
        ("orphaned", '<path class="f-orphan" d="M70 14h6v18H70z"/>'),
        ("missed", '<path class="s-miss" d="M70.7 14.7h4.6v16.6H70.7z"/>'),
        ("skipped", '<path class="f-skip" d="M70 24h6v3H70z"/>'),
        ("late", '<path class="f-ok" d="M70 22h6v10H70z"/><path class="f-late" d="M70 14h6v7H70z"/>'),
        ("retrying", '<path class="f-ok" d="M70 22h6v10H70z"/><path class="f-late" d="M70 14h6v7H70z"/>'),
        ("running", '<path class="f-run" d="M70 19h6v13H70z"/>'),
        ("queued", '<path class="s-next" d="M70.5 19.5h5v12H70.5z"/>'),
    ],
)
def test_each_outcome_has_a_shape(scale, outcome, drawing):
    assert drawing in svg(scale, event(outcome, 10))


def test_slots_not_on_record_have_no_cell_and_no_line(scale):
    found = svg(scale, Stretch("not on record", (10, 11), None, None))

    assert '<path class="s-none" d="M70 25.5H83"/>' in found
    assert '<path class="base" d="M0 34.5H70M83 34.5H672"/>' in found


def test_an_event_is_a_link_with_its_words(scale):
    found = svg(scale, event("dead", 10, 11, count=6, reason='<"retries">'))

    assert (
        '<a class="ev" href="/why?at=7"><title>6 slots dead: &lt;&quot;retries&quot;&gt;, Fri 27 Nov 19:00</title>'
        in found
    )
    assert '<text class="k-dead" x="79.3" y="10">6</text>' in found
    assert '<rect class="hit" x="69" y="12" width="15" height="22" rx="2"/>' in found


def test_where_labels_would_meet_the_worse_one_stays(scale):
    found = strip_drawing.shapes(drawn(event("skipped", 10), event("dead", 11), event("late", 60)), scale)

    kept = strip_drawing.labelled(found)

    assert [each.stretch.outcome for each in found if id(each) in kept] == ["dead", "late"]


def test_labels_stay_within_the_strip(scale):
    shape = Shape(event("dead", 95, count=1200), [(665, 671)])

    assert shape.label_at + shape.label_width == 672


def test_a_pause_is_a_band_until_now(scale):
    pause = Pause(1, "job:close-day", None, "ann", NOW - timedelta(hours=2), None)

    assert '<rect class="band" x="599.34" width="56" y="-1" height="42"/>' in svg(scale, held=(pause,))


def test_all_strips_share_the_grid_the_releases_and_now(scale):
    board = Board(scale.window, [Mark(release="3f2c91a", at=NOW - timedelta(hours=1))], [])

    found = str(strip_drawing.definitions(board, scale))

    assert 'd="M0 0V41M84 0V41M168 0V41' in found
    assert '<path class="rel" d="M627.34 -1V41"/><path class="now" d="M655.34 -1V41"/>' in found


def test_nothing_has_an_inline_style(scale):
    assert "style=" not in svg(scale, event("dead", 1), event("late", 30))
