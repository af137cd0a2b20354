"""Scalars of runs as the geometry of inline SVG line charts, grouped by stage; the same scalar of several runs shares
a chart.

The lowest and the highest value of a line survive thinning, so a spike is always visible. Of a step that was logged
twice (a resumed run) the later value counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vsr1.report.ticks import round_ticks

WIDTH, HEIGHT = 360, 190  # user units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 12, 156  # the plot area in them
MOST_POINTS = 600
Point = tuple[int, float]  # step, value
Mark = tuple[float, float]  # x, y in user units


@dataclass(frozen=True)
class Line:
    """One run's line in user units, and the values to write beside it."""

    run: int
    points: list[Mark]
    lowest: Point
    highest: Point
    last: Point
    lowest_mark: Mark
    highest_mark: Mark

    @property
    def polyline(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """One scalar: a line each run that logged it, on one pair of axes."""

    name: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    low: float
    high: float


def charts_by_stage(runs: Sequence[Iterable[dict[str, Any]]]) -> dict[str, list[Chart]]:
    """Charts of the `read_scalars` rows of each run, stages and names in the order of their first row."""
    series: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for number, scalars in enumerate(runs):
        for row in scalars:
            names = series.setdefault(row["stage"], {})
            names.setdefault(row["name"], {}).setdefault(number, {})[row["step"]] = row["value"]
    return {
        stage: [
            _chart(name, {number: sorted(values.items()) for number, values in of_runs.items()})
            for name, of_runs in names.items()
        ]
        for stage, names in series.items()
    }


def thin(points: list[Point], most: int) -> list[Point]:
    """The lowest and highest point of each of `most` / 2 equal runs of points; all of them if there are few."""
    if len(points) <= most:
        return points
    kept: set[Point] = {points[0], points[-1]}
    buckets = most // 2
    for bucket in range(buckets):
        run = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        kept |= {min(run, key=lambda point: point[1]), max(run, key=lambda point: point[1])}
    return sorted(kept)


def _chart(name: str, of_runs: dict[int, list[Point]]) -> Chart:
    every = [point for points in of_runs.values() for point in points]
    lowest, highest = min(value for _, value in every), max(value for _, value in every)
    low, high = lowest, highest
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    first, final = min(step for step, _ in every), max(step for step, _ in every)

    def x(step: float) -> float:
        return (LEFT + RIGHT) / 2 if first == final else LEFT + (step - first) / (final - first) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def line(run: int, points: list[Point]) -> Line:
        least, most = (pick(points, key=lambda point: point[1]) for pick in (min, max))
        return Line(
            run=run,
            points=[(x(step), y(value)) for step, value in thin(points, MOST_POINTS)],
            lowest=least,
            highest=most,
            last=points[-1],
            lowest_mark=(x(least[0]), y(least[1])),
            highest_mark=(x(most[0]), y(most[1])),
        )

    return Chart(
        name=name,
        lines=[line(run, points) for run, points in of_runs.items()],
        x_ticks=[(x(step), label) for step, label in round_ticks(first, final, whole=True)],
        y_ticks=[(y(value), label) for value, label in round_ticks(low, high)],
        low=lowest,
        high=highest,
    )
