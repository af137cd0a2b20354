"""Bootstrap intervals against cases whose distribution is known."""

import numpy as np
import pytest

from vsr1.report.figures import bootstrap_intervals


def test_two_queries_by_hand() -> None:
    """Of 0 and 1 a quarter of the resampled means is 0, a half is 0.5, a quarter is 1."""
    values = np.array([[0.0], [1.0]])
    assert bootstrap_intervals(values).tolist() == [[0.0, 1.0]]
    assert bootstrap_intervals(values, level=0.4).tolist() == [[0.5, 0.5]]


def test_a_share_has_the_width_of_the_binomial() -> None:
    values = np.repeat([0.0, 1.0], [300, 100])[:, None]
    [[low, high]] = bootstrap_intervals(values, resamples=20_000)
    error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - error, abs=0.003)
    assert high == pytest.approx(0.25 + error, abs=0.003)


def test_metrics_are_drawn_together_and_repeat() -> None:
    values = np.random.default_rng(3).random((50, 1))
    both = bootstrap_intervals(np.concatenate([values, values + 1.0, np.full((50, 1), 7.0)], axis=1))
    assert both[1] == pytest.approx(both[0] + 1.0)
    assert both[2] == pytest.approx([7.0, 7.0])
    assert bootstrap_intervals(values).tolist() == bootstrap_intervals(values).tolist()
    assert bootstrap_intervals(values).tolist() != bootstrap_intervals(values, seed=1).tolist()
