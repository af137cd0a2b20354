"""Training examples out of scored trajectories: one a segment, with its advantage and that of its latents."""

from __future__ import annotations

from typing import Any

import ray

from vsr1.agent.trajectory import Trajectory
from vsr1.rl.batch import Example


def trained_examples(trajectories: list[Trajectory], advantages: list[float], clips: Any) -> list[Example]:
    """One example a segment, with the engine's own tokens and the clip it saw.

    Raises:
        ValueError: a clip whose content is not what the rollout saw.
    """
    wanted = sorted({segment.video_id for trajectory in trajectories for segment in trajectory.segments})
    loaded = dict(zip(wanted, ray.get(ray.get([clips.get.remote(video) for video in wanted])), strict=True))
    examples = []
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        for segment in trajectory.segments:
            clip = loaded[segment.video_id]
            if clip.content_hash != segment.clip_hash:
                raise ValueError(f"clip {segment.video_id} changed between rollout and learning; rebuild the dataset")
            examples.append(
                Example(
                    query=trajectory.query,
                    clip=clip,
                    prompt_ids=segment.prompt_token_ids,
                    response_ids=segment.response_token_ids,
                    refined=segment.refined,
                    positive=trajectory.gt_video,
                    negatives=_negatives(trajectory),
                    behaviour_logprobs=segment.response_logprobs,
                    advantage=advantage,
                )
            )
    return examples


def _negatives(trajectory: Trajectory) -> list[str]:
    """The wrong videos nearest to the query as it was searched first."""
    return [video for video, _ in trajectory.segments[0].retrieved if video != trajectory.gt_video]
