"""Scalars of a step of Stage 2, under the usual names."""

from __future__ import annotations

from statistics import mean, pstdev

from vsr1.episode.moments import moment_iou
from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.metrics.summary import EvalSummary
from vsr1.rl.credit import Credit


def rollout_metrics(trajectories: list[Trajectory], weight_version: int) -> dict[str, float]:
    """Means over trajectories, or over turns where the name says so.

    Args:
        weight_version: of the learner, which staleness is counted from.
    """
    looks = [(trajectory, segment) for trajectory in trajectories for segment in trajectory.segments]
    segments = [segment for _, segment in looks]
    groups: dict[str, list[float]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.query_id, []).append(trajectory.reward)
    lengths = [len(segment.response_token_ids) for segment in segments]
    stale = [weight_version - segment.weight_version for segment in segments]
    values = {
        "reward/total": mean(t.reward for t in trajectories),
        "reward/std_in_group": mean(pstdev(rewards) for rewards in groups.values()),
        "turns": mean(len(t.segments) for t in trajectories),
        "response_tokens": mean(lengths),
        "response_tokens/longest": max(lengths),
        "truncated": _share([s.finish_reason == "length" for s in segments]),
        "no_refinement": _share([s.lacks_refinement for s in segments]),
        "no_verdict": _share([s.verdict == "unknown" for s in segments]),
        "moment_iou": mean(moment_iou(t) for t in trajectories),
        "R@1_before": _share([t.segments[0].gt_rank_before == 1 for t in trajectories]),
        "R@1_after": _share([(t.last.gt_rank_after or t.last.gt_rank_before) == 1 for t in trajectories]),
        "staleness": mean(stale),
        "staleness/most": max(stale),
    }
    for term in trajectories[0].terms:
        values[f"reward/{term}"] = mean(t.terms[term] for t in trajectories)
    for turn in sorted({segment.turn for segment in segments}):
        refined = [s for s in segments if s.turn == turn and s.gt_rank_after is not None]
        if refined:
            values[f"refinement_{turn}/R@1_before"] = _share([s.gt_rank_before == 1 for s in refined])
            values[f"refinement_{turn}/R@1_after"] = _share([s.gt_rank_after == 1 for s in refined])
    return values | _verifier(looks)


def credit_metrics(credits: list[list[Credit]]) -> dict[str, float]:
    """Advantages of the turns."""
    values = [credit.tokens for turns in credits for credit in turns]
    return {
        "advantage/mean": mean(values),
        "advantage/std": pstdev(values),
        "advantage/largest": max(abs(value) for value in values),
    }


def validation_metrics(summary: EvalSummary, trajectories: list[Trajectory]) -> dict[str, float]:
    """What is followed while training.

    `R@1_shown` is the share of queries whose last video shown is the right one; rejected ones are excluded if the agent
    excludes them. It and the reward are means over the queries that were played, at least one.
    """
    return {
        "reward": mean(t.reward for t in trajectories),
        "R@1_engine": summary.engine.recall_at_1,
        "R@1_refined": summary.refined.recall_at_1,
        "R@1_shown": _share([t.last.video_id == t.gt_video for t in trajectories]),
        "IoU@0.5": summary.moments.iou_05,
        "verification": summary.verification_all_turns.accuracy,
        "turns": summary.turns_per_query,
    }


def _verifier(looks: list[tuple[Trajectory, Segment]]) -> dict[str, float]:
    """The verifier's confusion, as shares of all looks."""
    values = {}
    for is_right, name in ((True, "right_video"), (False, "wrong_video")):
        for verdict in ("matched", "not_matched"):
            values[f"verifier/{name}_{verdict}"] = _share(
                [(s.video_id == t.gt_video) == is_right and s.verdict == verdict for t, s in looks]
            )
    values["verifier/accuracy"] = values["verifier/right_video_matched"] + values["verifier/wrong_video_not_matched"]
    return values


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)
