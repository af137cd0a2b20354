"""What the report draws and lists: ticks, curves, films, rank matrices, histograms, settings."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vsr1.config import Config
from vsr1.report.curves import BOTTOM, LEFT, MOST_POINTS, RIGHT, TOP, Chart, Line, charts_by_stage, round_ticks
from vsr1.report.figures import iou_bars, rank_matrix
from vsr1.report.films import ALL_BYTES, MOST_BYTES, bytes_of_a_film, film_of
from vsr1.report.settings import ABSENT, setting_rows
from vsr1.video.clips import Clip

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


def row(step: int, value: float, stage: str = "sft", name: str = "loss") -> dict[str, object]:
    return {"stage": stage, "step": step, "name": name, "value": value, "time": 0.0}


def test_ticks_by_hand() -> None:
    assert round_ticks(0.0, 32.0, most=8) == [(0.0, "0"), *((5.0 * k, str(5 * k)) for k in range(1, 7))]
    assert [label for _, label in round_ticks(0, 2, whole=True)] == ["0", "1", "2"]
    assert round_ticks(3.0, 3.0) == [(3.0, "3")]
    with pytest.raises(ValueError, match="in order"):
        round_ticks(2.0, 1.0)


@given(VALUES, VALUES)
def test_ticks_are_few_and_inside(a: float, b: float) -> None:
    low, high = sorted((a, b))
    if 0 < high - low < 1e-6 * max(abs(low), abs(high)):
        return
    ticks = round_ticks(low, high)
    slack = 1e-6 * (high - low)
    assert 1 <= len(ticks) <= 7
    assert all(low - slack <= at <= high + slack for at, _ in ticks)


def only_line(rows: list[dict[str, object]], stage: str = "sft") -> tuple[Chart, Line]:
    (chart,) = charts_by_stage([rows])[stage]
    (line,) = chart.lines
    return chart, line


def test_curves_keep_stages_apart_and_the_later_of_two_values() -> None:
    rows = [row(2, 5.0), row(1, 3.0), row(2, 4.0), row(1, 1.0, stage="grpo")]
    assert list(charts_by_stage([rows])) == ["sft", "grpo"]
    chart, line = only_line(rows)
    assert (line.lowest, line.highest, line.last) == ((1, 3.0), (2, 4.0), (2, 4.0))
    assert chart.polyline(line) == f"{LEFT}.0,{BOTTOM}.0 {RIGHT}.0,{TOP}.0"


def test_runs_share_the_axes_of_a_chart() -> None:
    (chart,) = charts_by_stage([[row(0, 0.0), row(10, 5.0)], [], [row(5, 10.0)]])["sft"]
    assert [line.run for line in chart.lines] == [0, 2]
    assert [chart.at(point) for point in chart.lines[0].points] == [(LEFT, BOTTOM), (RIGHT, (TOP + BOTTOM) / 2)]
    assert [chart.at(point) for point in chart.lines[1].points] == [((LEFT + RIGHT) / 2, TOP)]
    assert (chart.low, chart.high) == (0.0, 10.0)
    assert chart.x_ticks[0] == (LEFT, "0") and chart.y_ticks[-1] == (TOP, "10")


def test_a_value_that_never_changes_is_drawn_in_the_middle() -> None:
    chart, line = only_line([row(1, 2.0), row(2, 2.0)])
    assert [chart.at(point)[1] for point in line.points] == [(TOP + BOTTOM) / 2] * 2
    assert chart.y_ticks == [((TOP + BOTTOM) / 2, "2")]


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_curves_stay_in_the_plot(values: list[float]) -> None:
    chart, line = only_line([row(step, value) for step, value in enumerate(values)])
    for x, y in map(chart.at, [*line.points, line.lowest, line.highest]):
        assert LEFT - 1e-6 <= x <= RIGHT + 1e-6
        assert TOP - 1e-6 <= y <= BOTTOM + 1e-6


def test_thinning_keeps_the_spike() -> None:
    values = [1.0] * 10_000
    values[4321] = 9.0
    _, line = only_line([row(step, value) for step, value in enumerate(values)])
    assert len(line.points) <= MOST_POINTS + 2
    assert line.highest in line.points


def picture_of(film_base64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(film_base64))).convert("RGB"))


def test_a_film_is_a_row_of_frames_to_scale() -> None:
    """Frame i is that of the middle of the i-th of 12 equal parts: of 24 frames of 1 s, those near 1, 3, 5, … s."""
    clip = np.repeat((np.arange(24) * 10)[:, None, None, None], 3, axis=3).astype(np.uint8)
    clip = np.broadcast_to(clip, (24, 32, 32, 3))
    film = film_of(Clip("v", np.ascontiguousarray(clip), np.arange(24.0), ""))
    assert (film.count, film.width, film.height, film.seconds) == (12, 32, 32, 24.0)
    picture = picture_of(film.base64)
    assert picture.shape == (32, 12 * 32, 3)
    assert picture[16, 16::32, 0] == pytest.approx(np.arange(12) * 20 + 10, abs=6)


def test_films_are_small_and_keep_their_shape() -> None:
    film = film_of(Clip("v", np.zeros((64, 200, 400, 3), np.uint8), np.arange(64) * 2.0, ""))
    assert (film.width, film.height, film.seconds) == (96, 48, 128.0)
    assert film_of(Clip("v", np.zeros((3, 8, 8, 3), np.uint8), np.arange(3.0), "")).count == 3


def test_a_film_takes_the_best_quality_that_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)  # the worst case
    sizes = [
        len(film_of(Clip("v", noise, np.arange(12.0), ""), most).base64) * 3 // 4
        for most in (MOST_BYTES, 12_000, 4_000)
    ]
    assert sizes[0] <= MOST_BYTES + 2 and sizes[1] <= 12_002 and sizes[2] <= 4_002
    assert bytes_of_a_film(3) == MOST_BYTES
    assert bytes_of_a_film(5000) * 5000 <= ALL_BYTES


def ranks(*pairs: tuple[int, int]) -> list[dict[str, object]]:
    return [{"first_rank": before, "last_rank": after} for before, after in pairs]


def test_rank_matrix_by_hand() -> None:
    matrix = rank_matrix(ranks((1, 1), (1, 1), (2, 1), (3, 2), (8, 40)))
    assert matrix.bands == ["1", "≤\u20093", "≤\u200910", "≤\u200930", "≤\u2009100"]
    counts = {(a, b): count for a, line in enumerate(matrix.counts) for b, count in enumerate(line) if count}
    assert counts == {(0, 0): 2, (0, 1): 1, (1, 1): 1, (4, 2): 1}  # after, before
    assert (matrix.better, matrix.same, matrix.worse) == (2, 2, 1)
    assert (matrix.shades[0][:2], matrix.shades[1][0]) == ([5, 4], 0)


@given(st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 200_000)), min_size=1, max_size=50))
def test_every_query_is_in_the_rank_matrix(pairs: list[tuple[int, int]]) -> None:
    matrix = rank_matrix(ranks(*pairs))
    assert sum(map(sum, matrix.counts)) == len(pairs)
    assert matrix.better + matrix.same + matrix.worse == len(pairs)


def test_iou_bars_hold_every_query_once() -> None:
    bars = iou_bars([{"iou": value} for value in (0.0, 0.0, 0.05, 0.1, 0.3, 0.95, 1.0)])
    assert [count for _, count in bars] == [2, 1, 1, 0, 1, *[0] * 5, 2]
    assert [label for label, _ in bars[:3]] == ["none", "0.0\u20130.1", "0.1\u20130.2"]


def test_settings_are_those_that_are_not_the_default() -> None:
    changed = Config().model_dump(mode="json") | {"seed": 7, "gone": {"key": [1, 2]}}
    rows = {item.key: item for item in setting_rows([changed, Config().model_dump(mode="json"), None])}
    assert rows.keys() == {"seed", "gone.key"}
    assert (rows["seed"].default, rows["seed"].values) == ("0", ("7", "0", ABSENT))
    assert (rows["gone.key"].default, rows["gone.key"].values) == (ABSENT, ("1, 2", ABSENT, ABSENT))
    assert rows["seed"].differs and not setting_rows([changed])[0].differs
    assert setting_rows([None]) == []
