"""The groups of samples that one step of Stage 2 trains on.

A group is the samples of one prompt id. A sample that failed is dropped with its reason and counted, never scored; a
group that is left with fewer than two samples goes whole. Groups whose samples all earned the same teach the policy
nothing: up to `grpo.replace_equal_groups` of them a step are replaced by groups of further prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from actors.rollout import Sampling
from pipelines.stage.pump import Outcome
from pipelines.stage.tasks import group_of
from pipelines.stage.workers import RolloutError, Workers, complete
from vsr1.config import Config
from vsr1.episode.sample import FailedSample
from vsr1.search.record import SearchTask, SearchTrajectory


@dataclass
class StepGroups:
    """What a step rolled out: `trained`, and what became of the rest."""

    trained: list[SearchTrajectory] = field(default_factory=list)
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
    workers: Workers,
    stream: Iterator[SearchTask],
    config: Config,
    step: int,
    on_trajectory: Callable[[SearchTrajectory], None] = lambda _: None,
) -> StepGroups:
    """Play, score and choose the groups of one step.

    Args:
        on_trajectory: gets each trajectory as it ends, while others are still played.

    Raises:
        RolloutError: more samples failed than `grpo.max_failed_fraction` tolerates, or no group is left.
    """
    settings, result = config.grpo, StepGroups()
    spare, wanted = settings.replace_equal_groups, settings.prompts_per_step
    rollout = config.rollout
    sampling = Sampling(
        config.retrieval.top_k, rollout.temperature, settings.latents.sigma, top_p=rollout.top_p, tokens=rollout.top_k
    )
    outcomes: list[Outcome] = []  # every sample of the step
    while wanted:
        prompts = list(islice(stream, wanted))
        result.prompts += len(prompts)
        tasks = [task for prompt in prompts for task in group_of(prompt, settings.group_size)]
        new = []
        for outcome in workers.play("train", tasks, config.agent, sampling):
            new.append(outcome)
            if not isinstance(outcome, FailedSample):
                on_trajectory(outcome)
        outcomes += new
        complete(outcomes, settings.max_failed_fraction)
        trajectories, failures = complete(new, tolerated=1.0)
        result.failures.update(failure.reason for failure in failures)
        wanted = _sort_in(result, _groups(prompts, trajectories), spare)
        spare -= wanted
    if not result.trained:
        raise RolloutError(f"step {step}: no group is left to train on; samples failed with {dict(result.failures)}")
    return result


def _groups(prompts: Iterable[SearchTask], trajectories: list[SearchTrajectory]) -> list[list[SearchTrajectory]]:
    """Return the samples of each prompt, in the order of the prompts and of the sample numbers."""
    groups: dict[str, list[SearchTrajectory]] = {prompt.id.prompt: [] for prompt in prompts}
    for trajectory in sorted(trajectories, key=lambda trajectory: trajectory.id):
        groups[trajectory.id.prompt].append(trajectory)
    return list(groups.values())


def _sort_in(result: StepGroups, groups: list[list[SearchTrajectory]], spare: int) -> int:
    """Add what can be trained on; return how many groups are to be replaced, at most `spare`."""
    replaced = 0
    for members in groups:
        if len(members) < 2:
            result.lost_groups += 1
            continue
        if len({trajectory.reward for trajectory in members}) == 1:
            result.equal_groups += 1
            if replaced < spare:
                replaced += 1
                continue
        result.trained += members
    return replaced
