"""What the learner trains on: replies about clips, from a dataset (Stage 1) or from the engine (Stage 2).

An example names its clips and does not hold them: who trains on it reads them where they lie.
"""

from __future__ import annotations

import logging
from dataclasses import astuple, dataclass

import numpy as np

from vsr1.rl.flops import ModelFlops
from vsr1.video.clips import ClipReference

_log = logging.getLogger(__name__)


class LearnerError(RuntimeError):
    """A step that must not be taken; the message names the rank and the quantity."""


@dataclass
class RetrievalTarget:
    """What the query refined after a reply should find: `positive`, rather than any of `negatives` (at least one)."""

    query: str
    positive: str
    negatives: list[str]
    earlier_latents: np.ndarray | None = None  # [M, R] of turns before, when refinements accumulate
    latents: np.ndarray | None = None  # [N, R] float32 as the engine made them: Stage 2 only


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
    learnt: list[bool] | None = None  # tokens of the response that Stage 1 learns; None: all

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def shared(self) -> tuple[object, ...]:
        """What examples have in common that are run together: the prompt and the clips that it shows."""
        return (tuple(self.prompt_ids), self.clips)

    @property
    def trained(self) -> list[bool]:
        """Which tokens of the response are trained."""
        flags = self.sampled.trained if self.sampled else self.learnt
        return [True] * len(self.response_ids) if flags is None else flags

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


def by_prompt(examples: list[Example]) -> list[list[Example]]:
    """Return the examples in groups of one prompt, in their order; other clips make another prompt."""
    groups: dict[tuple[object, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.shared, []).append(example)
    return list(groups.values())


def split_over_ranks(examples: list[Example], ranks: int, flops: ModelFlops) -> list[list[Example]]:
    """Return parts of about equal work, so that no rank waits long for another.

    The examples of a prompt stay together; the largest share is halved only while that shortens the longest part.

    Raises:
        ValueError: fewer examples than ranks.
    """
    if len(examples) < ranks:
        raise ValueError(
            f"{len(examples)} examples cannot feed {ranks} learner ranks; raise the batch or lower the ranks"
        )
    groups = by_prompt(examples)
    parts, longest = _dealt(groups, ranks, flops)
    while True:
        largest = max((group for group in groups if len(group) > 1), key=lambda one: _cost(one, flops), default=None)
        if largest is None:
            return parts
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
        others, most = _dealt(groups, ranks, flops)
        if all(parts) and most >= longest:
            return parts
        parts, longest = others, most


def _dealt(groups: list[list[Example]], ranks: int, flops: ModelFlops) -> tuple[list[list[Example]], float]:
    """Return the parts, costly groups first to the least loaded rank, and the cost of the costliest part."""
    parts: list[list[Example]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for cost, group in sorted(((_cost(group, flops), group) for group in groups), key=lambda pair: -pair[0]):
        rank = loads.index(min(loads))
        parts[rank] += group
        loads[rank] += cost
    return parts, max(loads)


def _cost(group: list[Example], flops: ModelFlops) -> float:
    replies = [(len(example.response_ids), len(example.response_ids)) for example in group]
    return flops.prompt(len(group[0].prompt_ids), replies)


def micro_batches(examples: list[Example], tokens: int) -> list[list[list[Example]]]:
    """Cut a rank's part into forward passes: of each the groups of examples that share a prompt, long ones first.

    Args:
        examples: at least one.
        tokens: most tokens of a pass, a shared prompt counted once. The replies of a longer group go into several
            passes; one reply with its prompt is a pass at least.
    """
    passes: list[list[list[Example]]] = []
    room: list[int] = []  # in each pass
    groups = [part for group in by_prompt(examples) for part in _within(group, tokens)]
    for size, group in sorted(((_size(group), group) for group in groups), key=lambda pair: -pair[0]):
        if size > tokens and not passes:
            _log.warning(
                "a prompt with one reply has %d tokens, more than micro_tokens=%d: each reply is a pass of its "
                "own, which is slower; raise learner.micro_tokens",
                size,
                tokens,
            )
        place = next((i for i, left in enumerate(room) if left >= size), len(passes))
        if place == len(passes):
            passes.append([])
            room.append(tokens)
        passes[place].append(group)
        room[place] -= size
    return passes


def _within(group: list[Example], tokens: int) -> list[list[Example]]:
    """Cut a group so that its parts keep to `tokens`, or hold one example."""
    parts: list[list[Example]] = []
    for example in group:
        if not parts or _size([*parts[-1], example]) > tokens:
            parts.append([])
        parts[-1].append(example)
    return parts


def _size(group: list[Example]) -> int:
    return len(group[0].prompt_ids) + sum(len(example.response_ids) for example in group)
