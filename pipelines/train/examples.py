"""Training examples out of scored trajectories: one a turn, with the engine's own tokens and latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from vsr1.config import Config
from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.video.clips import Clip


def trained_examples(
    trajectories: list[Trajectory], credits: list[list[Credit]], clips: Any, config: Config
) -> list[Example]:
    """One example a turn, with the clip it saw; replies cut at the limit stay out if `train_truncated` says so.

    Raises:
        ValueError: a clip whose content is not what the rollout saw.
    """
    wanted = sorted({segment.video_id for trajectory in trajectories for segment in trajectory.segments})
    loaded = dict(zip(wanted, ray.get([clips.get.remote(video) for video in wanted]), strict=True))
    return [
        turn_example(trajectory, number, credit, loaded[segment.video_id], config)
        for trajectory, turns in zip(trajectories, credits, strict=True)
        for number, (segment, credit) in enumerate(zip(trajectory.segments, turns, strict=True))
        if is_trained(segment, config)
    ]


def is_trained(segment: Segment, config: Config) -> bool:
    return segment.finish_reason != "length" or config.grpo.objective.train_truncated


def turn_example(trajectory: Trajectory, number: int, credit: Credit, clip: Clip, config: Config) -> Example:
    """The example of a turn, `number` counted from 0.

    Raises:
        ValueError: the clip's content is not what the rollout saw.
    """
    segment = trajectory.segments[number]
    if clip.content_hash != segment.clip_hash:
        raise ValueError(f"clip {segment.video_id} changed between rollout and learning; rebuild the dataset")
    return Example(
        query=trajectory.query,
        clip=clip,
        prompt_ids=segment.prompt_token_ids,
        response_ids=segment.response_token_ids,
        refined=segment.refined,
        positive=trajectory.gt_video,
        negatives=_negatives(trajectory, segment),
        behaviour_logprobs=segment.response_logprobs,
        advantage=credit.tokens,
        latents=segment.latents,
        noise=segment.noise,
        latent_advantage=credit.latents,
        earlier_latents=_earlier(trajectory, number, config),
    )


def _negatives(trajectory: Trajectory, segment: Segment) -> list[str]:
    """The wrong video that was shown, then those nearest to the query as it was searched first."""
    found = [segment.video_id, *[video for video, _ in trajectory.segments[0].retrieved]]
    return [video for video in dict.fromkeys(found) if video != trajectory.gt_video]


def _earlier(trajectory: Trajectory, number: int, config: Config) -> np.ndarray | None:
    """Latents of the turns before, where they stay in the query."""
    if config.agent.latents_of_turns == "replace":
        return None
    before = [segment.latents for segment in trajectory.segments[:number] if segment.latents is not None]
    return np.concatenate(before) if before else None
