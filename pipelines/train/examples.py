"""Training examples out of scored trajectories: one a turn, with the engine's own tokens and latents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.rl.batch import Example, LatentActions, RetrievalTarget, Sampled
from vsr1.rl.credit import Credit
from vsr1.search.targets import negatives_of
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig
from vsr1.video.clips import ClipReference


def clips_of(trajectory: Trajectory) -> list[ClipReference]:
    """Return what names the clips that a trajectory was shown."""
    return [ClipReference(segment.video_id, segment.clip_hash) for segment in trajectory.segments]


def trained_examples(
    trajectories: list[Trajectory],
    credits: list[list[Credit]],
    negatives: Mapping[str, list[str]],
    stage: GrpoConfig,
    agent: AgentConfig,
) -> list[Example]:
    """Return one example a turn; replies cut at the limit stay out if `train_truncated` says so.

    Args:
        credits: of the turns of each trajectory.
        negatives: the wrong videos that the reward compares with beside the one shown, by query id.
    """
    return [
        turn_example(trajectory, number, credit, negatives[trajectory.query_id], stage, agent)
        for trajectory, turns in zip(trajectories, credits, strict=True)
        for number, (segment, credit) in enumerate(zip(trajectory.segments, turns, strict=True))
        if is_trained(segment, stage)
    ]


def is_trained(segment: Segment, stage: GrpoConfig) -> bool:
    """Tell whether a turn takes part in the losses."""
    return segment.finish_reason != "length" or stage.objective.train_truncated


def turn_example(
    trajectory: Trajectory, number: int, credit: Credit, negatives: list[str], stage: GrpoConfig, agent: AgentConfig
) -> Example:
    """Return the example of a turn, `number` counted from 0; `negatives` are those of its query."""
    segment = trajectory.segments[number]
    target = actions = None
    wrong = negatives_of(trajectory.gt_video, segment.video_id, negatives)
    if segment.latents is not None and wrong:
        target = RetrievalTarget(trajectory.query, trajectory.gt_video, wrong, _earlier(trajectory, number, agent))
    if segment.latents is not None and stage.latents.sigma:
        # The seed of the turn's request, as the rollout worker gives it to the engine.
        actions = LatentActions(segment.latents, trajectory.seed + segment.turn, credit.latents)
    return Example(
        prompt_ids=segment.prompt_token_ids,
        response_ids=segment.response_token_ids,
        clips=(ClipReference(segment.video_id, segment.clip_hash),),
        target=target,
        sampled=Sampled(segment.response_logprobs, credit.tokens, latents=actions),
    )


def _earlier(trajectory: Trajectory, number: int, agent: AgentConfig) -> np.ndarray | None:
    """Return the latents of the turns before, None where they do not stay in the query."""
    if agent.latents_of_turns == "replace":
        return None
    before = [segment.latents for segment in trajectory.segments[:number] if segment.latents is not None]
    return np.concatenate(before) if before else None
