"""Scalars of a step on three trajectories small enough to count by hand."""

import numpy as np
import pytest
from search_episodes import search_trajectory, search_turn

from pipelines.train.step_metrics import credit_metrics, rollout_metrics
from vsr1.episode.moments import Span
from vsr1.episode.trajectory import FinishReason, Turn
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, SearchTurn, Verdict


def look(
    turn: int, video: str, verdict: Verdict, before: int, after: int | None, span: Span | None = None, tokens: int = 4,
    version: int = 3, finish: FinishReason = "stop",
) -> Turn[SearchTurn]:  # fmt: skip
    latents = None if after is None else np.zeros((2, 3), np.float32)
    return search_turn(
        turn, video, verdict, span, tokens=tokens, finish_reason=finish, latents=latents, ranks=(before, after),
        weight_version=version,
    )  # fmt: skip


def trajectory(prompt: str, reward: float, *turns: Turn[SearchTurn]) -> SearchTrajectory:
    terms = {"verification": reward / 2}
    gt = ("right", (0.0, 4.0), 8.0)
    return search_trajectory("query", list(turns), "", prompt=prompt, gt=gt, terms=terms, reward=reward)


def three() -> list[SearchTrajectory]:
    return [
        trajectory("p", 1.0, look(1, "wrong", "not_matched", 5, 1), look(2, "right", "matched", 1, None, (0.0, 8.0))),
        trajectory("p", 3.0, look(1, "right", "matched", 1, 2, (0.0, 4.0), tokens=10)),
        trajectory("q", 2.0, look(1, "right", "unknown", 1, None, tokens=6, version=1, finish="length")),
    ]


def test_counts_by_hand() -> None:
    found = rollout_metrics(three(), weight_version=4)
    assert found == pytest.approx(
        {
            "reward/total": 2.0,
            "reward/std_in_group": 0.5,  # 1 in p, 0 in q
            "reward/verification": 1.0,
            "turns": 4 / 3,
            "response_tokens": 6.0,
            "response_tokens/longest": 10,
            "truncated": 1 / 4,
            "no_refinement": 1 / 4,  # a match needs none
            "no_verdict": 1 / 4,
            "moment_iou": 1.5 / 3,
            "R@1_before": 2 / 3,
            "R@1_after": 2 / 3,  # the first was found, the second lost again
            "refinement_1/R@1_before": 1 / 2,
            "refinement_1/R@1_after": 1 / 2,
            "staleness": 1.5,
            "staleness/most": 3,
            "versions_in_sample": 1,
            "attempts_lost": 0,
            "verifier/right_video_matched": 2 / 4,
            "verifier/right_video_not_matched": 0.0,
            "verifier/wrong_video_matched": 0.0,
            "verifier/wrong_video_not_matched": 1 / 4,
            "verifier/accuracy": 3 / 4,
        }
    )


def test_advantages_count_by_turn() -> None:
    found = credit_metrics([[Credit(1.0, 9.0), Credit(-3.0, 9.0)], [Credit(2.0, 9.0)]])
    assert found == pytest.approx({"advantage/mean": 0.0, "advantage/std": (14 / 3) ** 0.5, "advantage/largest": 3.0})
