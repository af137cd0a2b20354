"""Scalars of a run as the geometry of inline SVG line charts, grouped by stage.

The lowest and the highest value of a curve survive thinning, so a spike is always visible. Of a step that was logged
twice (a resumed run) the later value counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vsr1.report.ticks import round_ticks

WIDTH, HEIGHT = 360, 190  # user units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 12, 156  # the plot area in them
MOST_POINTS = 600
Point = tuple[int, float]  # step, value
Mark = tuple[float, float]  # x, y in user units


@dataclass(frozen=True)
class Curve:
    """One chart: its line and ticks in user units, and the values to write beside it."""

    name: str
    line: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lowest: Point
    highest: Point
    last: Point
    lowest_mark: Mark
    highest_mark: Mark

    @property
    def polyline(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.line)


def curves_by_stage(scalars: Iterable[dict[str, Any]]) -> dict[str, list[Curve]]:
    """Charts of `read_scalars` rows, stages and names in the order of their first row."""
    series: dict[str, dict[str, dict[int, float]]] = {}
    for row in scalars:
        series.setdefault(row["stage"], {}).setdefault(row["name"], {})[row["step"]] = row["value"]
    return {
        stage: [_curve(name, sorted(values.items())) for name, values in names.items()]
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


def _curve(name: str, points: list[Point]) -> Curve:
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    low, high = lowest[1], highest[1]
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    first, final = points[0][0], points[-1][0]

    def x(step: float) -> float:
        return (LEFT + RIGHT) / 2 if first == final else LEFT + (step - first) / (final - first) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    return Curve(
        name=name,
        line=[(x(step), y(value)) for step, value in thin(points, MOST_POINTS)],
        x_ticks=[(x(step), label) for step, label in round_ticks(first, final, whole=True)],
        y_ticks=[(y(value), label) for value, label in round_ticks(low, high)],
        lowest=lowest,
        highest=highest,
        last=points[-1],
        lowest_mark=(x(lowest[0]), y(lowest[1])),
        highest_mark=(x(highest[0]), y(highest[1])),
    )
