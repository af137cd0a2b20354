"""From an episode to one number: named terms of its turns and of its end, bounded, weighted and added.

An environment says which terms it has and computes them (`Rewards`); what is done with them is the same for all. A
trajectory either gets every term, finite and within bounds, or a `RewardError`; nothing is scored by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from vsr1.episode.trajectory import RecordT, TaskT, Trajectory


class RewardError(ValueError):
    """A reward that cannot be computed or is out of bounds; the message names the term and the sample."""


@dataclass(frozen=True)
class Term:
    """One named part of the reward, before its weight between `low` and `high`."""

    name: str
    weight: float
    low: float = 0.0
    high: float = 1.0
    of_end: bool = False  # judges the end of the episode: counted once, with its last turn; else a mean over the turns
    of_latents: bool = False  # what a turn earns of it is also the reward of its latents


class Rewards(Protocol[TaskT, RecordT]):
    """The terms of one environment."""

    @property
    def terms(self) -> Sequence[Term]: ...

    def of_turns(self, trajectory: Trajectory[TaskT, RecordT]) -> list[Mapping[str, float]]:
        """Return, for each turn, every term that is not `of_end`, unweighted; nothing of one that has none."""

    def of_end(self, trajectory: Trajectory[TaskT, RecordT]) -> Mapping[str, float]:
        """Return every term that is `of_end`, unweighted."""


def scored(trajectory: Trajectory[TaskT, RecordT], rewards: Rewards[TaskT, RecordT]) -> Trajectory[TaskT, RecordT]:
    """Return a copy with `terms`, `weights`, `turn_terms` and the rewards filled in.

    A term over turns counts with its mean over those that have it, so that a further turn is not paid for by itself; a
    turn's own reward is the weighted sum of its terms, and the last turn's includes what judges the end.

    Raises:
        RewardError: no turns, or a term that is missing, not finite or out of bounds.
    """
    name = f"sample {trajectory.id}"
    if not trajectory.turns:
        raise RewardError(f"{name} has no turns to score; a rollout that failed must be reissued or dropped")
    turns, end = rewards.of_turns(trajectory), rewards.of_end(trajectory)
    judged = [turn for turn in turns if turn] or turns
    for values, is_end in ((end, True), *((turn, False) for turn in judged)):
        _check(name, values, [term for term in rewards.terms if term.of_end == is_end])
    terms = {
        term.name: end[term.name] if term.of_end else fmean(turn[term.name] for turn in judged)
        for term in rewards.terms
    }
    weights = {term.name: term.weight for term in rewards.terms}
    turn_terms = [dict(turn) for turn in turns]
    turn_terms[-1] |= end
    turn_rewards = [sum(weights[key] * value for key, value in turn.items()) for turn in turns]
    turn_rewards[-1] += sum(weights[key] * value for key, value in end.items())
    latent_terms = [term.name for term in rewards.terms if term.of_latents]
    reward = sum(weights[key] * value for key, value in terms.items())
    if not math.isfinite(reward):
        raise RewardError(f"{name}: the weighted reward is {reward}; check the weights in `rewards` and terms {terms}")
    return replace(
        trajectory,
        terms=terms,
        turn_rewards=turn_rewards,
        turn_latent_rewards=[sum(weights[key] * turn.get(key, 0.0) for key in latent_terms) for turn in turns],
        reward=float(reward),
        turn_terms=turn_terms,
        weights=weights,
    )


def _check(name: str, values: Mapping[str, float], expected: list[Term]) -> None:
    if set(values) != {term.name for term in expected}:
        raise RewardError(f"{name}: reward terms {sorted(values)} are not {sorted(term.name for term in expected)}")
    for term in expected:
        value = values[term.name]
        if not (math.isfinite(value) and term.low <= value <= term.high):
            raise RewardError(f"{name}: reward term {term.name} is {value}, outside [{term.low}, {term.high}]")
