"""What the report draws: ticks, curves, thumbnails, time axes and cut replies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.report.curves import BOTTOM, LEFT, MOST_POINTS, RIGHT, TOP, curves_by_stage
from vsr1.report.filmstrip import thumbnails
from vsr1.report.reply import pieces
from vsr1.report.ticks import round_ticks

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


def test_curves_keep_stages_apart_and_the_later_of_two_values() -> None:
    stages = curves_by_stage([row(2, 5.0), row(1, 3.0), row(2, 4.0), row(1, 1.0, stage="grpo")])
    assert list(stages) == ["sft", "grpo"]
    (curve,) = stages["sft"]
    assert (curve.lowest, curve.highest, curve.last) == ((1, 3.0), (2, 4.0), (2, 4.0))
    assert curve.line == [(LEFT, BOTTOM), (RIGHT, TOP)]


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_curves_stay_in_the_plot(values: list[float]) -> None:
    (curve,) = curves_by_stage([row(step, value) for step, value in enumerate(values)])["sft"]
    for x, y in [*curve.line, curve.lowest_mark, curve.highest_mark]:
        assert LEFT - 1e-6 <= x <= RIGHT + 1e-6
        assert TOP - 1e-6 <= y <= BOTTOM + 1e-6


def test_thinning_keeps_the_spike() -> None:
    values = [1.0] * 10_000
    values[4321] = 9.0
    (curve,) = curves_by_stage([row(step, value) for step, value in enumerate(values)])["sft"]
    assert len(curve.line) <= MOST_POINTS + 2
    assert curve.highest_mark in curve.line


def test_thumbnails_are_spread_and_small() -> None:
    clip = np.zeros((64, 200, 400, 3), np.uint8)
    film = thumbnails("v", clip, np.arange(64) * 2.0)
    assert (len(film), film[0].seconds, film[-1].seconds) == (12, 0.0, 126.0)
    assert (film[0].width, film[0].height, film[0].pixelated) == (160, 80, False)
    assert len(thumbnails("v", clip[:3], np.arange(3.0))) == 3
    with pytest.raises(ValueError, match="video 'v'"):
        thumbnails("v", clip[:0], np.zeros(0))


def test_reply_is_cut_at_its_tags() -> None:
    cut = [(piece.text, piece.style) for piece in pieces("<think>a</think> <start>1.0</start><REFINE>")]
    assert cut == [
        ("<think>", "tag-think"),
        ("a", "in-think"),
        ("</think>", "tag-think"),
        (" ", ""),
        ("<start>", "tag-start"),
        ("1.0", "in-start"),
        ("</start>", "tag-start"),
        ("<REFINE>", "tag-refine"),
    ]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "<REFINE>", "</end>", "<", ">", "text"])))
def test_pieces_together_are_the_reply(parts: list[str]) -> None:
    text = "".join(parts)
    assert "".join(piece.text for piece in pieces(text)) == text
