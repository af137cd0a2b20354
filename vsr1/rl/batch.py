"""What the learner trains on: replies about clips, from a dataset (Stage 1) or from the engine (Stage 2).

An example names its clips and does not hold them: who trains on it reads them where they lie.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from vsr1.video.clips import ClipReference


class LearnerError(RuntimeError):
    """A step that must not be taken; the message names the rank and the quantity."""


@dataclass
class RetrievalTarget:
    """What the query refined after a reply should find: `positive`, rather than any of `negatives` (at least one)."""

    query: str
    positive: str
    negatives: list[str]
    earlier_latents: np.ndarray | None = None  # [M, R] of turns before, when refinements accumulate


@dataclass
class LatentActions:
    """Latents that the engine sampled with noise, and what they earned."""

    values: np.ndarray  # [N, R] float32
    seed: int  # of the engine's request: the noise in them follows from it (`latent_noise`)
    advantage: float


@dataclass
class Sampled:
    """How the engine sampled a reply, and what it earned: Stage 2 only."""

    logprobs: list[float]  # of every token of the reply
    advantage: float
    trained: list[bool] | None = None  # tokens that take part in the policy loss, at least one; None: all
    latents: LatentActions | None = None
    old: list[float] | None = None  # log-probs under the learner before the first of several steps on them


@dataclass
class Example:
    """One reply to a prompt in which each of `clips` has its video tokens, in this order.

    Without `target` there is no retrieval loss: the reply accepts its video, or there is nothing to compare with.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    clips: tuple[ClipReference, ...] = ()
    target: RetrievalTarget | None = None
    sampled: Sampled | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def trained(self) -> list[bool]:
        """Which tokens of the response are trained."""
        if self.sampled is None or self.sampled.trained is None:
            return [True] * len(self.response_ids)
        return self.sampled.trained

    @property
    def latent_actions(self) -> LatentActions | None:
        """Latents that are actions, if it has some."""
        return self.sampled.latents if self.sampled else None


@dataclass(frozen=True)
class BatchTotals:
    """Counts over all micro-batches and ranks of a step, which the shares are taken of."""

    tokens: int  # of the replies, those that are trained
    replies: int
    refined: int  # replies with a retrieval loss
    sampled_latents: int  # replies whose latents are actions


def batch_totals(examples: list[Example]) -> BatchTotals:
    """Count the examples of one rank, or of a whole step."""
    return BatchTotals(
        tokens=sum(sum(example.trained) for example in examples),
        replies=len(examples),
        refined=sum(example.target is not None for example in examples),
        sampled_latents=sum(example.latent_actions is not None for example in examples),
    )


def add_totals(parts: list[BatchTotals]) -> BatchTotals:
    """Return the counts of all ranks together."""
    return BatchTotals(*map(sum, zip(*map(astuple, parts), strict=True)))


def split_over_ranks(examples: list[Example], ranks: int) -> list[list[Example]]:
    """Return parts of about equal token counts, long ones first, so that no rank waits long for another.

    Raises:
        ValueError: fewer examples than ranks.
    """
    if len(examples) < ranks:
        raise ValueError(
            f"{len(examples)} examples cannot feed {ranks} learner ranks; raise the batch or lower the ranks"
        )
    parts: list[list[Example]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for example in _longest_first(examples):
        rank = loads.index(min(loads))
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


def _longest_first(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: -example.length)


def annealed(done: float) -> float:
    """Return the factor of the learning rates: 1 in the first half of a training, then evenly down to 0.

    Args:
        done: share of the training that is over, in 0..1.
    """
    return min(1.0, 2 * (1 - done))
