"""Moments of a video: their overlap, and how often it suffices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

Span = tuple[float, float]  # start and end in seconds
SHORTEST_SPAN = 1e-9  # seconds; a span no longer than this has no overlap with anything


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two (start, end) spans in seconds, in 0..1 (data-eval.md §5).

    0 if either span is at most `SHORTEST_SPAN` long, which includes reversed ones.

    Raises:
        ValueError: an end of a span is not finite.
    """
    if not all(math.isfinite(value) for value in (*a, *b)):
        raise ValueError(f"temporal_iou: spans {a} and {b} must be finite; clamp them to the video first")
    length_a, length_b = a[1] - a[0], b[1] - b[0]
    if length_a <= SHORTEST_SPAN or length_b <= SHORTEST_SPAN:
        return 0.0
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return min(1.0, max(0.0, intersection / (length_a + length_b - intersection)))


def clamp_span(span: Span, duration: float) -> Span:
    """Both ends clamped to [0, `duration`] seconds, then put in order (reference behaviour, data-eval.md §4.3).

    Raises:
        ValueError: an end is not a number, or the duration is not a positive finite number.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"clamp_span: duration {duration} s must be positive and finite; check the annotation")
    if any(math.isnan(value) for value in span):
        raise ValueError(f"clamp_span: span {span} holds a value that is not a number; the reply parser let it pass")
    first, second = (min(max(value, 0.0), duration) for value in span)
    return (first, second) if first <= second else (second, first)


def recall_at_iou(ious: Sequence[float], threshold: float) -> float:
    """Share of queries with IoU of at least `threshold` (VCMR IoU@m, bound included), in 0..1.

    Raises:
        ValueError: no IoUs, or a threshold outside (0, 1].
    """
    if not ious:
        raise ValueError("recall_at_iou: no IoUs were given; an average over no query is undefined")
    if not 0 < threshold <= 1:
        raise ValueError(f"recall_at_iou: threshold {threshold} must be above 0 and at most 1")
    return fmean(iou >= threshold for iou in ious)
