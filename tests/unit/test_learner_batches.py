"""How a step's examples are spread over ranks and cut into forward passes."""

from hypothesis import given
from hypothesis import strategies as st

from vsr1.rl.batch import Example, micro_batches, rounds, split_over_ranks


def _examples(lengths: list[int]) -> list[Example]:
    return [Example("q", None, [0] * length, [], False, "v", []) for length in lengths]


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


@given(LENGTHS, st.integers(1, 4), st.integers(1, 200))
def test_ranks_make_as_many_passes_as_the_slowest(lengths: list[int], ranks: int, tokens: int) -> None:
    examples = _examples(lengths + [1] * ranks)
    parts = split_over_ranks(examples, ranks)
    assert rounds(parts, tokens) == max(len(micro_batches(part, tokens)) for part in parts)
    loads = [sum(e.length for e in part) for part in parts]
    assert max(loads) - min(loads) <= max(e.length for e in examples)
