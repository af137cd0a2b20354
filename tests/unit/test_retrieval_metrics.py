"""Rank metrics: values worked by hand, and what must hold for any ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.metrics.summary import mean_rank, median_rank, mrr, recall_at

RANKS = st.lists(st.integers(1, 500), min_size=1, max_size=40)


def test_values_by_hand() -> None:
    ranks = [1, 2, 4, 20]
    assert [recall_at(ranks, k) for k in (1, 2, 5, 10, 100)] == [0.25, 0.5, 0.75, 0.75, 1.0]
    assert mrr(ranks) == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4)
    assert mean_rank(ranks) == 6.75
    assert median_rank(ranks) == 3.0
    assert median_rank([5, 1, 9]) == 5.0


def test_a_query_without_a_rank_is_a_miss_and_has_no_part_in_mean_and_median() -> None:
    ranks = [1, None, 4, None]
    assert [recall_at(ranks, k) for k in (1, 5, 10**6)] == [0.25, 0.5, 0.5]
    assert (mrr(ranks), mean_rank(ranks), median_rank(ranks)) == (1.25 / 4, 2.5, 2.5)
    assert (mrr([None]), mean_rank([None]), median_rank([None])) == (0.0, None, None)


@given(RANKS, st.integers(1, 500), st.integers(1, 500))
def test_recall_grows_with_k_and_stays_a_share(ranks: list[int], a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert 0.0 <= recall_at(ranks, low) <= recall_at(ranks, high) <= 1.0


@given(RANKS)
def test_mrr_lies_between_recall_at_1_and_1(ranks: list[int]) -> None:
    assert recall_at(ranks, 1) <= mrr(ranks) + 1e-12
    assert 0.0 < mrr(ranks) <= 1.0
    assert min(ranks) <= median_rank(ranks) <= max(ranks)
