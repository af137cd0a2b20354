"""What the learner trains on: replies about clips, from a dataset (Stage 1) or from the engine (Stage 2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from vsr1.formats.clips import Clip


@dataclass
class Example:
    """One reply about one clip.

    `negatives` are wrong videos for the retrieval loss, which is taken where the reply ends in the refine token and
    there is at least one negative. What follows them is set in Stage 2 only.
    """

    query: str
    clip: Clip
    prompt_ids: list[int]
    response_ids: list[int]
    refined: bool
    positive: str
    negatives: list[str]
    behaviour_logprobs: list[float] | None = None
    advantage: float = 0.0
    latents: np.ndarray | None = None  # [N, R] float32 as sampled
    noise: np.ndarray | None = None  # [N, R] float32 that was added to them, None if they are no actions
    latent_advantage: float = 0.0
    earlier_latents: np.ndarray | None = None  # [M, R] of turns before, when refinements accumulate


@dataclass(frozen=True)
class BatchTotals:
    """Counts over all micro-batches and ranks of a step, which the shares are taken of."""

    tokens: int  # of the replies
    replies: int
    refined: int  # replies with a retrieval loss
    sampled_latents: int  # replies whose latents are actions


def batch_totals(examples: list[Example]) -> BatchTotals:
    """Counts over the whole batch of a step."""
    return BatchTotals(
        tokens=sum(len(example.response_ids) for example in examples),
        replies=len(examples),
        refined=sum(1 for example in examples if example.refined and example.negatives),
        sampled_latents=sum(1 for example in examples if example.noise is not None),
    )


def split_over_ranks(examples: list[Example], ranks: int) -> list[list[Example]]:
    """Parts of about equal token counts, long ones first, so that no rank waits long for another.

    Raises:
        ValueError: fewer examples than ranks.
    """
    if len(examples) < ranks:
        raise ValueError(
            f"{len(examples)} examples cannot feed {ranks} learner ranks; raise the batch or lower the ranks"
        )
    parts: list[list[Example]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    by_length = sorted(examples, key=lambda e: -(len(e.prompt_ids) + len(e.response_ids)))
    for i, example in enumerate(by_length):
        rank = i if i < ranks else loads.index(min(loads))
        parts[rank].append(example)
        loads[rank] += len(example.prompt_ids) + len(example.response_ids)
    return parts


def rounds(parts: list[list[Example]], micro_batch: int) -> int:
    """Forward passes every rank makes in a step, the same for all so that their collectives meet."""
    return max(ceil(len(part) / micro_batch) for part in parts)
