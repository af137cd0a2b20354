"""Scalars of one step's rollouts, under the usual names."""

from __future__ import annotations

from statistics import mean, pstdev

from vsr1.agent.trajectory import Trajectory
from vsr1.metrics.temporal import moment_iou


def rollout_metrics(trajectories: list[Trajectory]) -> dict[str, float]:
    """Means over trajectories, or over segments where the name says so."""
    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    groups: dict[str, list[float]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.query_id, []).append(trajectory.reward)
    refined = [s for s in segments if s.gt_rank_after is not None]
    values = {
        "reward/total": mean(t.reward for t in trajectories),
        "reward/std_in_group": mean(pstdev(rewards) for rewards in groups.values()),
        "groups_without_variance": mean(float(pstdev(rewards) == 0) for rewards in groups.values()),
        "turns": mean(len(t.segments) for t in trajectories),
        "response_tokens": mean(len(s.response_token_ids) for s in segments),
        "verdict_right": mean(float(t.terms["verification"]) for t in trajectories) / 2 + 0.5,
        "moment_iou": mean(moment_iou(t) for t in trajectories),
        "R@1_before": mean(float(t.segments[0].gt_rank_before == 1) for t in trajectories),
        "R@1_after": mean(float((t.last.gt_rank_after or t.last.gt_rank_before) == 1) for t in trajectories),
        "refined": len(refined) / len(segments),
    }
    for term in trajectories[0].terms:
        values[f"reward/{term}"] = mean(t.terms[term] for t in trajectories)
    return values
