"""What the learner trains on: replies about clips, from a dataset (Stage 1) or from the engine (Stage 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsr1.video.clips import Clip


class LearnerError(RuntimeError):
    """A step that must not be taken; the message names the rank and the quantity."""


@dataclass
class Example:
    """One reply about one clip, or to a text alone: then there is no clip and no video token in the prompt.

    `negatives` are wrong videos for the retrieval loss, which is taken where the reply ends in the refine token and
    there is at least one negative. What follows them is set in Stage 2 only.
    """

    query: str
    clip: Clip | None
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

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


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
    for i, example in enumerate(_longest_first(examples)):
        rank = i if i < ranks else loads.index(min(loads))
        parts[rank].append(example)
        loads[rank] += example.length
    return parts


def micro_batches(examples: list[Example], tokens: int) -> list[list[Example]]:
    """Cut a rank's part into forward passes, rows of about one length together, longest first.

    Args:
        examples: at least one.
        tokens: most tokens of a pass, padding included (rows times the longest row); a longer row is a pass of its own.
    """
    passes: list[list[Example]] = []
    for example in _longest_first(examples):
        if not passes or (len(passes[-1]) + 1) * passes[-1][0].length > tokens:
            passes.append([])
        passes[-1].append(example)
    return passes


def rounds(parts: list[list[Example]], tokens: int) -> int:
    """Forward passes every rank makes in a step, the same for all so that their collectives meet."""
    return max(len(micro_batches(part, tokens)) for part in parts)


def _longest_first(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: -example.length)


def annealed(done: float) -> float:
    """Factor of the learning rates: 1 in the first half of a training, then evenly down to 0.

    Args:
        done: share of the training that is over, in 0..1.
    """
    return min(1.0, 2 * (1 - done))
