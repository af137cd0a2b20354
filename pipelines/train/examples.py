"""Training examples out of scored trajectories: one a turn, with the engine's own tokens and latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from vsr1.config import Config
from vsr1.episode.trajectory import Turn
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.video.clips import Clip


def trained_examples(
    trajectories: list[SearchTrajectory], credits: list[list[Credit]], clips: Any, config: Config
) -> list[Example]:
    """One example a turn, with the clip it saw; replies cut at the limit stay out if `train_truncated` says so.

    Raises:
        ValueError: a clip whose content is not what the rollout saw.
    """
    wanted = sorted({segment.record.video_id for trajectory in trajectories for segment in trajectory.turns})
    loaded = dict(zip(wanted, ray.get([clips.get.remote(video) for video in wanted]), strict=True))
    return [
        turn_example(trajectory, number, credit, loaded[segment.record.video_id], config)
        for trajectory, turns in zip(trajectories, credits, strict=True)
        for number, (segment, credit) in enumerate(zip(trajectory.turns, turns, strict=True))
        if is_trained(segment, config)
    ]


def is_trained(segment: Turn[SearchTurn], config: Config) -> bool:
    return segment.finish_reason != "length" or config.grpo.objective.train_truncated


def turn_example(trajectory: SearchTrajectory, number: int, credit: Credit, clip: Clip, config: Config) -> Example:
    """The example of a turn, `number` counted from 0.

    Raises:
        ValueError: the clip's content is not what the rollout saw.
    """
    segment = trajectory.turns[number]
    if clip.content_hash != segment.clips[0].content_hash:
        raise ValueError(f"clip {segment.record.video_id} changed between rollout and learning; rebuild the dataset")
    return Example(
        query=trajectory.task.query,
        clip=clip,
        prompt_ids=segment.prompt_token_ids,
        response_ids=segment.response_token_ids,
        refined=segment.record.refined,
        positive=trajectory.task.gt_video,
        negatives=_negatives(trajectory, segment),
        behaviour_logprobs=segment.response_logprobs,
        advantage=credit.tokens,
        latents=segment.latents,
        noise=segment.noise,
        latent_advantage=credit.latents,
        earlier_latents=_earlier(trajectory, number, config),
    )


def _negatives(trajectory: SearchTrajectory, segment: Turn[SearchTurn]) -> list[str]:
    """The wrong video that was shown, then those nearest to the query as it was searched first."""
    found = [segment.record.video_id, *[video for video, _ in trajectory.turns[0].record.retrieved]]
    return [video for video in dict.fromkeys(found) if video != trajectory.task.gt_video]


def _earlier(trajectory: SearchTrajectory, number: int, config: Config) -> np.ndarray | None:
    """Latents of the turns before, where they stay in the query."""
    if config.agent.latents_of_turns == "replace":
        return None
    before = [segment.latents for segment in trajectory.turns[:number] if segment.latents is not None]
    return np.concatenate(before) if before else None
