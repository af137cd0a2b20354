"""Training examples out of scored trajectories: one a turn, with the engine's own tokens and latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.rl.batch import Example, LatentActions, RetrievalTarget, Sampled
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.search.targets import negatives_of
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig
from vsr1.video.clips import ClipReference


def clips_of(trajectory: SearchTrajectory) -> list[ClipReference]:
    """Return what names the clips that a trajectory was shown."""
    return [clip for turn in trajectory.turns for clip in turn.clips]


def trained_examples(
    trajectories: list[SearchTrajectory], credits: list[list[Credit]], stage: GrpoConfig, agent: AgentConfig
) -> list[Example]:
    """Return one example a turn; replies cut at the limit stay out if `train_truncated` says so.

    Args:
        credits: of the turns of each trajectory; `balance_verdicts` weighs those of the tokens.
    """
    weighed = weighed_credits(trajectories, credits, stage)
    return [
        turn_example(trajectory, place, credit, stage, agent)
        for trajectory, turns in zip(trajectories, weighed, strict=True)
        for place, (turn, credit) in enumerate(zip(trajectory.turns, turns, strict=True))
        if is_trained(turn, stage)
    ]


def weighed_credits(
    trajectories: Sequence[Trajectory[Any, Any]], credits: list[list[Credit]], stage: GrpoConfig
) -> list[list[Credit]]:
    """Return credits as they are, or with `balance_verdicts` those of tokens weighed by what was looked at.

    Looks at right videos together weigh as much as looks at wrong ones: with one right look among four, the right one
    weighs 2 and each wrong one 2/3. Where there is one kind only, nothing changes, nor do turns that judge no video.

    Args:
        trajectories: all that one step learns from, of any environment.
    """
    if not stage.objective.balance_verdicts:
        return credits
    is_right = [
        [turn.record.video_id == t.task.gt_video if isinstance(turn.record, SearchTurn) else None for turn in t.turns]
        for t in trajectories
    ]
    counts = Counter(kind for kind in chain(*is_right) if kind is not None)
    if len(counts) < 2:
        return credits
    weights = {kind: counts.total() / (2 * count) for kind, count in counts.items()} | {None: 1.0}
    return [
        [replace(credit, tokens=weights[kind] * credit.tokens) for credit, kind in zip(turns, kinds, strict=True)]
        for turns, kinds in zip(credits, is_right, strict=True)
    ]


def is_trained(turn: Turn[SearchTurn], stage: GrpoConfig) -> bool:
    """Tell whether a turn takes part in the losses."""
    return turn.finish_reason != "length" or stage.objective.train_truncated


def turn_example(
    trajectory: SearchTrajectory, place: int, credit: Credit, stage: GrpoConfig, agent: AgentConfig
) -> Example:
    """Return the example of a turn, `place` counted from 0."""
    task, turn = trajectory.task, trajectory.turns[place]
    latents = turn.latents.get("query")
    target = actions = None
    negatives = negatives_of(task.gt_video, turn.record.video_id, task.negatives)
    if latents is not None and negatives:
        target = RetrievalTarget(task.query, task.gt_video, negatives, _earlier(trajectory, place, agent), latents)
    if latents is not None and stage.latents.sigma:
        actions = LatentActions(latents, turn.seed, credit.latents)
    return Example(
        prompt_ids=turn.prompt_token_ids,
        response_ids=turn.response_token_ids,
        clips=tuple(turn.clips),
        target=target,
        sampled=Sampled(turn.response_logprobs, credit.tokens, turn.trained, actions),
    )


def _earlier(trajectory: SearchTrajectory, place: int, agent: AgentConfig) -> np.ndarray | None:
    """Return the latents of the turns before, None where they do not stay in the query."""
    if agent.latents_of_turns == "replace":
        return None
    before = [turn.latents["query"] for turn in trajectory.turns[:place] if "query" in turn.latents]
    return np.concatenate(before) if before else None
