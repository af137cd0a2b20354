"""The time axis under a filmstrip: where the true moment and the predicted span lie, in percent of its width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsr1.agent.trajectory import Segment, Span, Trajectory
from vsr1.metrics.temporal import clamp_span, temporal_iou
from vsr1.report.ticks import round_ticks


@dataclass(frozen=True)
class Bar:
    """A span in seconds as it was given, and the part on the axis in percent of its width."""

    span: Span
    left: float
    width: float


@dataclass(frozen=True)
class Tick:
    position: float  # percent
    label: str

    @property
    def anchor(self) -> str:
        """SVG text anchor that keeps the label inside the axis."""
        return "start" if self.position < 3 else "end" if self.position > 97 else "middle"


@dataclass(frozen=True)
class Timeline:
    """An axis of `duration` seconds; `true` is empty unless the video shown is the right one."""

    duration: float
    ticks: list[Tick]
    true: Bar | None
    predicted: Bar | None
    iou: float | None  # of the two, None unless both are there


def timeline(trajectory: Trajectory, segment: Segment, seconds: np.ndarray) -> Timeline:
    """Lay out one turn.

    The right video's length is the annotated one, stretched to a true moment that ends later; of another video only the
    frame times are known, and its length is the last of them plus one frame interval.

    Args:
        seconds: [T], frame times of the video shown; T > 0.
    """
    right = segment.video_id == trajectory.gt_video
    if right:
        duration = max(trajectory.gt_duration, trajectory.gt_span[1])
    else:
        duration = float(seconds[-1]) + (float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0)
    iou = None
    if right and segment.span is not None:
        iou = temporal_iou(clamp_span(segment.span, trajectory.gt_duration), trajectory.gt_span)
    return Timeline(
        duration=duration,
        ticks=[Tick(100 * at / duration, label) for at, label in round_ticks(0.0, duration, most=8)],
        true=_bar(trajectory.gt_span, duration) if right else None,
        predicted=None if segment.span is None else _bar(segment.span, duration),
        iou=iou,
    )


def _bar(span: Span, duration: float) -> Bar:
    start, end = clamp_span(span, duration)
    return Bar(span, 100 * start / duration, 100 * (end - start) / duration)
