"""Scalars of a step of Stage 2, under the usual names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mean, pstdev
from typing import Any

from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.metrics.long_search import LongSearchSummary
from vsr1.metrics.summary import EvalSummary, refined_rank
from vsr1.navigate.record import NavigateTrajectory, is_right, spent
from vsr1.navigate.summary import NavigateSummary
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, SearchTurn, moment_iou
from vsr1.search_then_navigate.record import LongSearchTrajectory, calls_of, judgements
from vsr1.search_then_navigate.record import spent as spent_on_films


def episode_metrics(trajectories: Sequence[Trajectory[Any, Any]], weight_version: int) -> dict[str, float]:
    """Return what every environment has: means over trajectories, or over turns where the name says so.

    Args:
        weight_version: of the learner, which staleness is counted from.
    """
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    groups: dict[str, list[float]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.id.prompt, []).append(trajectory.reward)
    lengths = [len(turn.response_token_ids) for turn in turns]
    stale = [weight_version - turn.weight_version for turn in turns]
    values = {
        "reward/total": mean(t.reward for t in trajectories),
        "reward/std_in_group": mean(pstdev(rewards) for rewards in groups.values()),
        "turns": mean(len(t.turns) for t in trajectories),
        "response_tokens": mean(lengths),
        "response_tokens/longest": max(lengths),
        "truncated": _share([turn.finish_reason == "length" for turn in turns]),
        "staleness": mean(stale),
        "staleness/most": max(stale),
        "versions_in_sample": mean(len({turn.weight_version for turn in t.turns}) for t in trajectories),
        "attempts_lost": sum(t.id.attempt for t in trajectories),
    }
    for term in trajectories[0].terms:
        values[f"reward/{term}"] = mean(t.terms[term] for t in trajectories)
    return values


def navigate_metrics(trajectories: Sequence[NavigateTrajectory], weight_version: int) -> dict[str, float]:
    """Return what is followed of navigation, with what every environment has; arguments as of `episode_metrics`."""
    statuses = Counter(turn.record.status for trajectory in trajectories for turn in trajectory.turns)
    values = {
        "accuracy": _share([is_right(one) for one in trajectories]),
        "abstained": _share([one.end_reason == "abstained" for one in trajectories]),
        "budget": mean(one.task.budget for one in trajectories),
        "spent": mean(spent(one) for one in trajectories),
    }
    values |= {f"status/{status}": count / statuses.total() for status, count in statuses.items()}
    return episode_metrics(trajectories, weight_version) | values


def long_search_metrics(trajectories: Sequence[LongSearchTrajectory], weight_version: int) -> dict[str, float]:
    """Return what is followed of searches that navigate: of the searches, and of the calls; as `episode_metrics`."""
    calls = [turn for trajectory in trajectories for turn in calls_of(trajectory)]
    statuses = Counter(turn.record.status for turn in calls)
    values = {
        "calls": len(calls) / len(trajectories),
        "budget": mean(one.task.budget for one in trajectories),
        "spent": mean(spent_on_films(one) for one in trajectories),
    }
    values |= {f"status/{status}": count / statuses.total() for status, count in statuses.items()}
    searches = rollout_metrics([judgements(one) for one in trajectories], weight_version)
    return searches | episode_metrics(trajectories, weight_version) | values


def rollout_metrics(trajectories: list[SearchTrajectory], weight_version: int) -> dict[str, float]:
    """Return what is followed of searches, with what every environment has; arguments as of `episode_metrics`."""
    looks = [(trajectory, turn) for trajectory in trajectories for turn in trajectory.turns]
    turns = [turn for _, turn in looks]
    records = [turn.record for turn in turns]
    values = episode_metrics(trajectories, weight_version) | {
        "no_refinement": _share([record.lacks_refinement for record in records]),
        "no_verdict": _share([record.verdict == "unknown" for record in records]),
        "moment_iou": mean(moment_iou(t) for t in trajectories),
        "R@1_before": _share([t.turns[0].record.gt_rank_before == 1 for t in trajectories]),
        "R@1_after": _share([refined_rank(t) == 1 for t in trajectories]),
    }
    for number in sorted({turn.number for turn in turns}):
        refined = [t.record for t in turns if t.number == number and t.record.gt_rank_after is not None]
        if refined:
            values[f"refinement_{number}/R@1_before"] = _share([record.gt_rank_before == 1 for record in refined])
            values[f"refinement_{number}/R@1_after"] = _share([record.gt_rank_after == 1 for record in refined])
    return values | _verifier(looks)


def credit_metrics(credits: list[list[Credit]]) -> dict[str, float]:
    """Return what is followed of the advantages of the turns."""
    values = [credit.tokens for turns in credits for credit in turns]
    return {
        "advantage/mean": mean(values),
        "advantage/std": pstdev(values),
        "advantage/largest": max(abs(value) for value in values),
    }


def validation_metrics(summary: EvalSummary, trajectories: list[SearchTrajectory]) -> dict[str, float]:
    """Return what is followed while training.

    `R@1_shown` is the share of queries whose last video shown is the right one; rejected ones are excluded if the agent
    excludes them. It and the reward are means over the queries that were played, at least one.
    """
    return {
        "reward": mean(t.reward for t in trajectories),
        "R@1_engine": summary.engine.recall_at_1,
        "R@1_refined": summary.refined.recall_at_1,
        "R@1_shown": _share([t.last.record.video_id == t.task.gt_video for t in trajectories]),
        "IoU@0.5": summary.moments.iou_05,
        "verification": summary.verification_all_turns.accuracy,
        "turns": summary.turns_per_query,
    }


def navigate_validation(summary: NavigateSummary, trajectories: Sequence[NavigateTrajectory]) -> dict[str, float]:
    """Return what is followed while training: the accuracy under each budget, and means over all."""
    values = {f"accuracy_at_{budget}": figures.accuracy for budget, figures in summary.budgets.items()}
    return values | {"reward": mean(t.reward for t in trajectories), "accuracy": summary.accuracy}


def long_search_validation(
    summary: LongSearchSummary, trajectories: Sequence[LongSearchTrajectory]
) -> dict[str, float]:
    """Return what is followed while training: the share of moments found under each budget, and means over all."""
    values = {f"IoU@0.5_at_{budget}": one.search.moments.iou_05 for budget, one in summary.budgets.items()}
    return values | {"reward": mean(t.reward for t in trajectories), "IoU@0.5": summary.iou_05}


def _verifier(looks: list[tuple[SearchTrajectory, Turn[SearchTurn]]]) -> dict[str, float]:
    """Return the verifier's confusion, as shares of all looks."""
    values = {}
    for shows_right, name in ((True, "right_video"), (False, "wrong_video")):
        for verdict in ("matched", "not_matched"):
            values[f"verifier/{name}_{verdict}"] = _share(
                [
                    (turn.record.video_id == t.task.gt_video) == shows_right and turn.record.verdict == verdict
                    for t, turn in looks
                ]
            )
    values["verifier/accuracy"] = values["verifier/right_video_matched"] + values["verifier/wrong_video_not_matched"]
    return values


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)
