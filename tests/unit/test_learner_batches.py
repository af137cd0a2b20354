"""How a step's examples are spread over ranks and cut into forward passes."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsr1.rl.batch import (
    BatchTotals,
    Example,
    LearnerError,
    add_totals,
    by_prompt,
    micro_batches,
    split_over_ranks,
)
from vsr1.rl.flops import ModelFlops
from vsr1.rl.learner import memory_named
from vsr1.settings.training import LearnerConfig

FLOPS = ModelFlops(token=1000.0, pair=1.0, word=300.0, patch=0.0, patch_pair=0.0, merged=0.0, merge=2)
GROUPS = st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=6)), min_size=1)


def _examples(groups: list[tuple[int, list[int]]]) -> list[Example]:
    """Replies of some lengths to prompts of some lengths, no two prompts alike, the groups mixed."""
    pairs = [(i, [i] * prompt, reply) for i, (prompt, replies) in enumerate(groups) for reply in replies]
    return [Example(prompt, [0] * reply) for _, prompt, reply in sorted(pairs, key=lambda pair: (pair[2], pair[0]))]


def _ids(examples: list[Example]) -> list[int]:
    return sorted(id(example) for example in examples)


def _tokens(group: list[Example]) -> int:
    assert len({tuple(example.prompt_ids) for example in group}) == 1
    return len(group[0].prompt_ids) + sum(len(example.response_ids) for example in group)


def _cost(part: list[Example]) -> float:
    return sum(FLOPS.prompt(len(g[0].prompt_ids), [(len(e.response_ids),) * 2 for e in g]) for g in by_prompt(part))


@given(GROUPS, st.integers(1, 200))
def test_passes_hold_every_example_once_within_the_budget(groups: list[tuple[int, list[int]]], tokens: int) -> None:
    examples = _examples(groups)
    passes = micro_batches(examples, tokens)
    assert _ids([example for part in passes for group in part for example in group]) == _ids(examples)
    for part in passes:
        assert sum(map(_tokens, part)) <= tokens or len(part) == len(part[0]) == 1


@given(GROUPS, st.integers(1, 200))
def test_a_prompt_is_run_once_if_its_replies_fit(groups: list[tuple[int, list[int]]], tokens: int) -> None:
    examples = _examples(groups)
    runs = [group for part in micro_batches(examples, tokens) for group in part]
    for group in by_prompt(examples):
        own = [run for run in runs if run[0].prompt_ids == group[0].prompt_ids]
        assert len(own) == 1 or _tokens(group) > tokens


@given(GROUPS, st.integers(1, 4))
def test_no_rank_has_much_more_to_do_than_another(groups: list[tuple[int, list[int]]], ranks: int) -> None:
    """The longest part is the mean and one reply with its prompt at most."""
    examples = _examples([*groups, *[(1, [1])] * ranks])
    parts = split_over_ranks(examples, ranks, FLOPS)
    assert _ids([example for part in parts for example in part]) == _ids(examples)
    assert all(parts)
    alone = max(_cost([example]) for example in examples)
    whole = max(_cost(group) for group in by_prompt(examples))
    assert max(map(_cost, parts)) <= sum(map(_cost, parts)) / ranks + max(alone, whole)


def test_samples_of_a_prompt_stay_together_where_that_is_not_slower() -> None:
    examples = _examples([(100, [5] * 8)] * 4)
    parts = split_over_ranks(examples, 4, FLOPS)
    assert [len(by_prompt(part)) for part in parts] == [1] * 4
    assert sorted(len(part) for part in split_over_ranks(examples[:8], 2, FLOPS)) == [4, 4]
    [alone] = by_prompt(examples)[:1]
    assert [len(part) for part in split_over_ranks(alone, 2, FLOPS)] == [4, 4]
    with pytest.raises(ValueError, match="2 examples cannot feed 3 learner ranks"):
        split_over_ranks(alone[:2], 3, FLOPS)


def test_counts_of_ranks_add_up_by_name() -> None:
    first, second = BatchTotals(1, 2, 3, 4), BatchTotals(10, 20, 30, 40)
    assert {f.name: getattr(add_totals([first, second]), f.name) for f in fields(BatchTotals)} == {
        "tokens": 11, "replies": 22, "refined": 33, "sampled_latents": 44,
    }  # fmt: skip


def test_a_gpu_that_is_too_small_for_a_pass_is_named_with_what_to_set() -> None:
    groups = [[Example([1, 2, 3], [4, 5]), Example([1, 2, 3], [6])], [Example([7], [8])]]
    with (
        pytest.raises(LearnerError, match=r"rank 1, pass 2: .* too small for 3 replies of 8 tokens; lower") as error,
        memory_named("rank 1, pass 2", groups, LearnerConfig(micro_tokens=500)),
    ):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")
    for part in ("learner.micro_tokens=500", "learner.gradient_checkpointing=False", "tried to allocate 3 GiB"):
        assert part in str(error.value)
