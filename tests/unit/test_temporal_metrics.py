"""Overlap of spans: values worked by hand, and what must hold for any spans."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.episode.moments import clamp_span, recall_at_iou, temporal_iou

SECONDS = st.floats(-1e4, 1e4, allow_nan=False)
SPANS = st.tuples(SECONDS, SECONDS)


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0.0, 10.0), (5.0, 15.0), 5 / 15),
        ((0.0, 10.0), (0.0, 7.0), 0.7),
        ((2.0, 4.0), (2.0, 4.0), 1.0),
        ((0.0, 1.0), (1.0, 2.0), 0.0),
        ((0.0, 1.0), (5.0, 6.0), 0.0),
        ((3.0, 3.0), (3.0, 3.0), 0.0),
        ((3.0, 3.0 + 1e-10), (0.0, 9.0), 0.0),
        ((8.0, 2.0), (2.0, 8.0), 0.0),
    ],
)
def test_iou_by_hand(a: tuple[float, float], b: tuple[float, float], iou: float) -> None:
    assert temporal_iou(a, b) == pytest.approx(iou)


@given(SPANS, SPANS)
def test_iou_is_symmetric_and_a_share(a: tuple[float, float], b: tuple[float, float]) -> None:
    assert temporal_iou(a, b) == temporal_iou(b, a)
    assert 0.0 <= temporal_iou(a, b) <= 1.0


@given(SPANS)
def test_iou_with_itself_is_1_unless_it_is_too_short(span: tuple[float, float]) -> None:
    assert temporal_iou(span, span) == (1.0 if span[1] - span[0] > 1e-9 else 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_iou_refuses_values_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        temporal_iou((0.0, value), (0.0, 1.0))


def test_clamp_by_hand() -> None:
    assert clamp_span((-3.0, 40.0), 32.0) == (0.0, 32.0)
    assert clamp_span((20.0, 5.0), 32.0) == (5.0, 20.0)
    assert clamp_span((50.0, 60.0), 32.0) == (32.0, 32.0)
    assert clamp_span((1.0, math.inf), 32.0) == (1.0, 32.0)


@given(SPANS, st.floats(0.1, 1e3))
def test_clamped_spans_are_in_order_and_inside(span: tuple[float, float], duration: float) -> None:
    start, end = clamp_span(span, duration)
    assert 0.0 <= start <= end <= duration
    assert clamp_span((start, end), duration) == (start, end)


def test_clamp_refuses_a_bad_duration_and_nan() -> None:
    with pytest.raises(ValueError, match=r"duration 0\.0"):
        clamp_span((0.0, 1.0), 0.0)
    with pytest.raises(ValueError, match="not a number"):
        clamp_span((math.nan, 1.0), 10.0)


def test_recall_at_iou_includes_the_bound() -> None:
    ious = [0.0, 0.3, 0.5, 0.9]
    assert [recall_at_iou(ious, bound) for bound in (0.3, 0.5, 0.7)] == [0.75, 0.5, 0.25]


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_recall_at_iou_falls_with_the_threshold(ious: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 1.0 >= recall_at_iou(ious, low) >= recall_at_iou(ious, high) >= 0.0


def test_recall_at_iou_refuses_nothing_and_bad_thresholds() -> None:
    with pytest.raises(ValueError, match="no IoUs"):
        recall_at_iou([], 0.5)
    with pytest.raises(ValueError, match="threshold 0"):
        recall_at_iou([0.5], 0)
