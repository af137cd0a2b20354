"""Scalars of runs as inline SVG line charts, grouped by stage; the same scalar of several runs shares a chart.

The lowest and the highest value of a line survive thinning, so a spike is always visible. Of a step that was logged
twice (a resumed run) the later value counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 360, 190  # user units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 12, 156  # the plot area in them
MOST_POINTS = 600
Point = tuple[int, float]  # step, value


@dataclass(frozen=True)
class Line:
    """One run's values, thinned, and those to write beside it."""

    run: int
    points: list[Point]
    lowest: Point
    highest: Point
    last: Point


@dataclass(frozen=True)
class Chart:
    """One scalar: a line each run that logged it, on one pair of axes, and the ends of these."""

    name: str
    lines: list[Line]
    first: int
    final: int
    low: float
    high: float

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return where a step and a value lie, in user units; an axis of no length has its only value in the middle."""
        step, value = point
        across = 0.5 if self.first == self.final else (step - self.first) / (self.final - self.first)
        up = 0.5 if self.low == self.high else (value - self.low) / (self.high - self.low)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def polyline(self, line: Line) -> str:
        """Return the `points` of an SVG polyline."""
        return " ".join("{:.1f},{:.1f}".format(*self.at(point)) for point in line.points)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Places in user units, and their labels."""
        ticks = round_ticks(self.first, self.final, whole=True)
        return [(self.at((step, self.low))[0], label) for step, label in ticks]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Places in user units, and their labels."""
        return [(self.at((self.first, value))[1], label) for value, label in round_ticks(self.low, self.high)]


def charts_by_stage(runs: Sequence[Iterable[dict[str, Any]]]) -> dict[str, list[Chart]]:
    """Return charts of the `read_scalars` rows of each run, stages and names in the order of their first row."""
    series: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for run, scalars in enumerate(runs):
        for row in scalars:
            of_runs = series.setdefault((row["stage"], row["name"]), {})
            of_runs.setdefault(run, {})[row["step"]] = row["value"]
    charts: dict[str, list[Chart]] = defaultdict(list)
    for (stage, name), of_runs in series.items():
        lines = [_line(run, sorted(values.items())) for run, values in of_runs.items()]
        steps = [step for values in of_runs.values() for step in values]
        low, high = min(line.lowest[1] for line in lines), max(line.highest[1] for line in lines)
        charts[stage].append(Chart(name, lines, min(steps), max(steps), low, high))
    return dict(charts)


def _line(run: int, points: list[Point]) -> Line:
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    return Line(run, thin(points, MOST_POINTS), lowest, highest, points[-1])


def thin(points: list[Point], most: int) -> list[Point]:
    """Return the lowest and highest point of each of `most` / 2 equal runs of points; all of them if there are few."""
    if len(points) <= most:
        return points
    visible: set[Point] = {points[0], points[-1]}
    buckets = most // 2
    for bucket in range(buckets):
        run = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        visible |= {min(run, key=lambda point: point[1]), max(run, key=lambda point: point[1])}
    return sorted(visible)


def round_ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[tuple[float, str]]:
    """Return one to about `most` multiples of 1, 2 or 5 times a power of ten inside [low, high], with their labels.

    Args:
        whole: keep to whole numbers, for step counts.

    Raises:
        ValueError: the bounds are not finite or not in order.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"round_ticks: bounds {low} and {high} must be finite and in order")
    raw = (high - low) / most
    if raw == 0:  # also where the bounds are nearer than floats can divide
        return [(low, f"{low:.6g}")]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, f"{index * step:.6g}") for index in range(first, last + 1)]
