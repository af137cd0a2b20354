"""How a step's examples are spread over ranks and cut into forward passes."""

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from vsr1.rl.batch import BatchTotals, Example, add_totals, micro_batches, split_over_ranks


def _examples(lengths: list[int]) -> list[Example]:
    return [Example([0] * length, []) for length in lengths]


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_passes_hold_every_example_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    examples = _examples(lengths)
    passes = micro_batches(examples, tokens)
    assert sorted(id(e) for part in passes for e in part) == sorted(id(e) for e in examples)
    for part in passes:
        assert len(part) == 1 or len(part) * max(e.length for e in part) <= tokens
    flat = [e.length for part in passes for e in part]
    assert flat == sorted(flat, reverse=True)


@given(LENGTHS, st.integers(1, 200))
def test_no_pass_ends_while_the_next_row_fits(lengths: list[int], tokens: int) -> None:
    passes = micro_batches(_examples(lengths), tokens)
    for part in passes[:-1]:
        assert (len(part) + 1) * part[0].length > tokens


@given(LENGTHS, st.integers(1, 4))
def test_no_rank_has_much_more_to_do_than_another(lengths: list[int], ranks: int) -> None:
    examples = _examples(lengths + [1] * ranks)
    parts = split_over_ranks(examples, ranks)
    assert sorted(id(e) for part in parts for e in part) == sorted(id(e) for e in examples)
    assert all(parts)
    loads = [sum(e.length for e in part) for part in parts]
    assert max(loads) - min(loads) <= max(e.length for e in examples)


def test_counts_of_ranks_add_up_by_name() -> None:
    first, second = BatchTotals(1, 2, 3, 4), BatchTotals(10, 20, 30, 40)
    assert {f.name: getattr(add_totals([first, second]), f.name) for f in fields(BatchTotals)} == {
        "tokens": 11, "replies": 22, "refined": 33, "sampled_latents": 44,
    }  # fmt: skip
