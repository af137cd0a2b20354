"""The groups of samples that one step of Stage 2 trains on.

A sample that failed is dropped with its reason and counted, never scored; a group that is left with fewer than two
samples goes whole. Groups whose samples all earned the same teach the policy nothing: up to
`grpo.replace_equal_groups` of them a step are replaced by groups of further prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from actors.rollout import Sampling
from pipelines.stage.tasks import group_of
from pipelines.stage.workers import Outcome, RolloutError, Services, complete
from vsr1.config import Config
from vsr1.episode.trajectory import Trajectory
from vsr1.rl.advantages import groups_with_variance
from vsr1.search.environment import SearchTask


@dataclass
class StepGroups:
    """What a step rolled out: `trained`, and what became of the rest."""

    trained: list[Trajectory] = field(default_factory=list)
    prompts: int = 0
    equal_groups: int = 0  # replaced ones included
    lost_groups: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by reason

    def metrics(self) -> dict[str, float]:
        values: dict[str, float] = {
            "groups/prompts": self.prompts,
            "groups/without_variance": self.equal_groups,
            "groups/lost": self.lost_groups,
            "failed_samples": self.failures.total(),
        }
        return values | {f"failed_samples/{reason}": count for reason, count in self.failures.items()}


def roll_out_groups(
    world: Services,
    stream: Iterator[SearchTask],
    config: Config,
    step: int,
    on_trajectory: Callable[[Trajectory], None] = lambda _: None,
) -> StepGroups:
    """Play, score and choose the groups of one step.

    Args:
        on_trajectory: gets each trajectory as it ends, while others are still played.

    Raises:
        RolloutError: more samples failed than `grpo.max_failed_fraction` tolerates, or no group is left.
    """
    settings, done = config.grpo, StepGroups()
    spare, wanted = settings.replace_equal_groups, settings.prompts_per_step
    sampling = Sampling(config.retrieval.top_k, config.rollout.temperature, settings.latents.sigma)
    judged: list[Outcome] = []  # every sample of the step
    while wanted:
        tasks = []
        for prompt in islice(stream, wanted):
            seed = config.seed + 1000 * (step * 1000 + done.prompts)
            tasks += group_of(prompt, settings.group_size, seed)
            done.prompts += 1
        outcomes = []
        for outcome in world.rollout("train", tasks, config.agent, sampling):
            outcomes.append(outcome)
            if isinstance(outcome, Trajectory):
                on_trajectory(outcome)
        played, lost = complete(outcomes, tolerated=1.0)
        scored, unscored = complete(world.score(played), tolerated=1.0)
        judged += [*lost, *unscored, *scored]
        complete(judged, settings.max_failed_fraction)
        done.failures.update(sample.reason for sample in [*lost, *unscored])
        wanted = _sort_in(done, scored, [task.query_id for task in tasks], spare)
        spare -= wanted
    if not done.trained:
        raise RolloutError(f"step {step}: no group is left to train on; samples failed with {dict(done.failures)}")
    return done


def _sort_in(done: StepGroups, scored: list[Trajectory], played: list[str], spare: int) -> int:
    """Add what can be trained on; how many groups are to be replaced.

    Args:
        played: groups that the samples were of, failed ones included.
    """
    groups: dict[str, list[Trajectory]] = {key: [] for key in sorted(played)}
    for trajectory in sorted(scored, key=lambda t: t.sample):
        groups[trajectory.query_id].append(trajectory)
    replaced = 0
    for members in groups.values():
        if len(members) < 2:
            done.lost_groups += 1
            continue
        rewards = torch.tensor([trajectory.reward for trajectory in members])
        if not groups_with_variance(rewards, torch.zeros(len(members), dtype=torch.long)).any():
            done.equal_groups += 1
            if replaced < spare:
                replaced += 1
                continue
        done.trained += members
    return replaced
