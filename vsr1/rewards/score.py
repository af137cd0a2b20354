"""From turns to one number: each term is averaged over the turns, checked against its bounds, weighted and added.

A trajectory either gets all six terms, finite and within bounds, or a `RewardError`; nothing is scored by default.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.rewards.terms import (
    RewardError,
    refine_presence,
    retrieval,
    temporal_iou,
    think_format,
    time_format,
    verification,
)
from vsr1.settings.training import RewardConfig

TERMS = ("verification", "think_format", "time_format", "temporal_iou", "refine_presence", "retrieval")


def score(trajectory: Trajectory, config: RewardConfig) -> dict[str, float]:
    """The unweighted terms by name, in the order of `TERMS`.

    `temporal_iou` is that of the final turn; every other term is the mean over the turns.

    Raises:
        RewardError: no turns, a term without its inputs, or a term that is not finite or out of bounds.
    """
    segments, query_id = trajectory.segments, trajectory.query_id
    if not segments:
        raise RewardError(
            f"query {query_id!r} has no turns to score; a rollout that failed must be reissued or dropped"
        )
    turns = [_turn_terms(trajectory, segment, config) for segment in segments]
    terms = {
        name: temporal_iou(trajectory) if name == "temporal_iou" else fmean(turn[name] for turn in turns)
        for name in TERMS
    }
    for name, value in terms.items():
        low, high = bounds(name, config)
        if not (math.isfinite(value) and low <= value <= high):
            raise RewardError(f"reward term {name} of query {query_id!r} is {value}, outside [{low}, {high}]")
    return terms


def turn_rewards(trajectory: Trajectory, config: RewardConfig) -> tuple[list[float], list[float]]:
    """The weighted reward of each turn, and what of it is the retrieval term.

    The temporal IoU belongs to the last turn. `total` is the mean of the other terms over the turns, and the IoU.

    Raises:
        RewardError: as `score`.
    """
    rewards, of_retrieval = [], []
    for segment in trajectory.segments:
        terms = _turn_terms(trajectory, segment, config)
        weighted = {name: getattr(config, name) * value for name, value in terms.items()}
        rewards.append(sum(weighted.values()))
        of_retrieval.append(weighted["retrieval"])
    rewards[-1] += config.temporal_iou * temporal_iou(trajectory)
    return rewards, of_retrieval


def _turn_terms(trajectory: Trajectory, segment: Segment, config: RewardConfig) -> dict[str, float]:
    """The terms that every turn has."""
    return {
        "verification": verification(trajectory, segment),
        "think_format": think_format(segment),
        "time_format": time_format(segment),
        "refine_presence": refine_presence(segment),
        "retrieval": retrieval(trajectory.query_id, segment, config),
    }


def bounds(term: str, config: RewardConfig) -> tuple[float, float]:
    """Lowest and highest possible value of a term."""
    if term == "verification":
        return -1.0, 1.0
    if term == "retrieval":
        lowest = -1.0 if config.retrieval_form == "delta_p" else 0.0
        return min(lowest, config.no_refine_penalty), 1.0
    return 0.0, 1.0


def total(terms: dict[str, float], config: RewardConfig) -> float:
    """Sum of weight times term over `TERMS`.

    Raises:
        RewardError: a term is missing or unknown, or the sum is not finite.
    """
    if set(terms) != set(TERMS):
        raise RewardError(f"reward terms {sorted(terms)} are not the expected {sorted(TERMS)}")
    reward = sum(getattr(config, name) * terms[name] for name in TERMS)
    if not math.isfinite(reward):
        raise RewardError(f"the weighted reward is {reward}; check the weights in `rewards` and the terms {terms}")
    return float(reward)


def scored(trajectory: Trajectory, config: RewardConfig) -> Trajectory:
    """A copy with `terms`, `turn_rewards`, `turn_retrieval_rewards` and `reward` filled in.

    Raises:
        RewardError: as `score` and `total`.
    """
    terms = score(trajectory, config)
    by_turn, of_retrieval = turn_rewards(trajectory, config)
    return replace(
        trajectory,
        terms=terms,
        turn_rewards=by_turn,
        turn_retrieval_rewards=of_retrieval,
        reward=total(terms, config),
    )
