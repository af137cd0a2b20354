"""The reward terms of the search environment, unweighted; each follows the table of method.md §4.4.

Every function is pure and looks at one turn, except `temporal_iou`, which looks at the end of the whole trajectory. The
verdict and the span are those the agent acted on, so a reward never disagrees with the loop about what was said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vsr1.episode.moments import temporal_iou as overlap
from vsr1.episode.rewards import RewardError, Term
from vsr1.episode.trajectory import Turn
from vsr1.search.parse import last_element
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.settings.training import RewardConfig

CORRECT_REJECTION = 0.5  # temporal IoU of a correct "not_matched" that gives no time


class SearchRewards:
    """The six terms with the weights of `rewards`."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        lowest = min(-1.0 if config.retrieval_form == "delta_p" else 0.0, config.no_refine_penalty)
        self.terms = (
            Term("verification", config.verification, low=-1.0),
            Term("think_format", config.think_format),
            Term("time_format", config.time_format),
            Term("temporal_iou", config.temporal_iou, of_end=True),
            Term("refine_presence", config.refine_presence),
            Term("retrieval", config.retrieval, low=lowest, of_latents=True),
        )

    def of_turns(self, trajectory: SearchTrajectory) -> list[Mapping[str, float]]:
        return [
            {
                "verification": verification(trajectory, turn),
                "think_format": think_format(turn),
                "time_format": time_format(turn),
                "refine_presence": refine_presence(turn),
                "retrieval": retrieval(trajectory, turn, self._config),
            }
            for turn in trajectory.turns
        ]

    def of_end(self, trajectory: SearchTrajectory) -> Mapping[str, float]:
        return {"temporal_iou": temporal_iou(trajectory)}


def verification(trajectory: SearchTrajectory, turn: Turn[SearchTurn]) -> float:
    """Return +1 if "matched" was said about the right video or "not_matched" about a wrong one, else -1."""
    right = "matched" if turn.record.video_id == trajectory.task.gt_video else "not_matched"
    return 1.0 if turn.record.verdict == right else -1.0


def think_format(turn: Turn[SearchTurn]) -> float:
    """Return 1 if the last `<think>` element holds anything but blanks, else 0."""
    return float(bool((last_element(turn.text, "think") or "").strip()))


def time_format(turn: Turn[SearchTurn]) -> float:
    """Return 1 for "matched" with both time tags and for "not_matched" without both of them, else 0."""
    has_start, has_end = _time_tags(turn)
    if turn.record.verdict == "matched":
        return float(has_start and has_end)
    return float(turn.record.verdict == "not_matched" and not (has_start and has_end))


def refine_presence(turn: Turn[SearchTurn]) -> float:
    """Return 1 if the query was refined, or had not to be as the shown video was accepted, else 0."""
    return float(not turn.record.lacks_refinement)


def temporal_iou(trajectory: SearchTrajectory) -> float:
    """Return the overlap of the final turn's span with the true moment, in 0..1.

    0 after a wrong verdict; 0.5 for a correct "not_matched" without any time tag, 0 with one. For a correct "matched"
    the intersection over union in seconds, 0 without a usable span.

    Raises:
        RewardError: the true moment is not finite.
    """
    task, last = trajectory.task, trajectory.last.record
    if not all(math.isfinite(value) for value in task.gt_span):
        raise RewardError(
            f"temporal_iou of query {task.query_id!r}: the true moment {task.gt_span} is not finite; "
            "check its annotation"
        )
    if verification(trajectory, trajectory.last) < 0:
        return 0.0
    if last.verdict == "not_matched":
        return 0.0 if any(_time_tags(trajectory.last)) else CORRECT_REJECTION
    if last.span is None or not all(math.isfinite(value) for value in last.span):
        return 0.0
    return overlap(last.span, task.gt_span)


def retrieval(trajectory: SearchTrajectory, turn: Turn[SearchTurn], config: RewardConfig) -> float:
    """Return what this turn's refinement did to the probability p of the right video among its negatives.

    p_after - p_before (`delta_p`, the reference's code) or p_after (`p_after`, the paper), 0 without negatives. An
    accepted video ends the search, so the query stays and p with it. `no_refine_penalty` if the video was not accepted
    and the query not refined.

    Raises:
        RewardError: the scores were not asked for, or before and after differ in length.
    """
    query_id = trajectory.task.query_id
    if turn.record.lacks_refinement:
        return config.no_refine_penalty
    record = turn.record
    before = after = _scores(query_id, turn, "before", record.gt_score_before, record.negative_scores_before)
    if record.refined:
        after = _scores(query_id, turn, "after", record.gt_score_after, record.negative_scores_after)
    if len(before) != len(after):
        raise RewardError(
            f"retrieval of query {query_id!r}, turn {turn.number}: {len(before) - 1} negatives before the refinement "
            f"and {len(after) - 1} after it; ask both searches for the same videos"
        )
    if len(after) == 1:
        return 0.0
    p_after = probability_of_first(after, config.retrieval_temperature)
    if config.retrieval_form == "p_after":
        return p_after
    return p_after - probability_of_first(before, config.retrieval_temperature)


def probability_of_first(scores: Sequence[float], temperature: float) -> float:
    """Return softmax(scores / temperature)[0], in 0..1 (method.md §4.4)."""
    logits = np.asarray(scores, np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return float(weights[0] / weights.sum())


def _time_tags(turn: Turn[SearchTurn]) -> tuple[bool, bool]:
    return last_element(turn.text, "start") is not None, last_element(turn.text, "end") is not None


def _scores(
    query_id: str, turn: Turn[SearchTurn], when: str, positive: float | None, negatives: list[float] | None
) -> list[float]:
    """Return the similarity of a query vector to the right video, then to each of its negatives."""
    if positive is None or negatives is None:
        raise RewardError(
            f"retrieval of query {query_id!r}, turn {turn.number}: the scores {when} the refinement are missing; "
            "every search of a training rollout must ask for the scores of the right video and of its negatives"
        )
    return [positive, *negatives]
