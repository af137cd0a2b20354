"""Which prompts are given out, and which groups a step of Stage 2 trains on; both without Ray.

A group is the samples of one prompt id. A sample that failed is dropped with its reason and counted, never scored; a
group that is left with fewer than two samples is lost, and takes its place in a step all the same. Groups whose samples
all earned the same teach the policy nothing: up to `grpo.replace_equal_groups` of them a step are replaced by groups of
further prompts.

At most `grpo.staleness` + 1 steps' prompts are given out and not learned; only learning makes room for more. A group
that was issued after step v is learned in step v + staleness + 1 at the latest. With staleness 2 and two
prompts a step, all complete but c:

    issued after 0: a b c d e f     step 1 takes a b, step 2 takes d e, step 3 must take c f: with `grpo.late: wait`
                                    it waits for c, with `drop` it takes f and the next one, and c is dropped
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.stage.plays import Outcome
from pipelines.stage.workers import RolloutError, complete
from vsr1.episode.sample import FailedSample
from vsr1.ledger import POISON
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.training import GrpoConfig


@dataclass
class StepGroups:
    """What a step trains on, and what became of the rest since the step before it."""

    trained: list[SearchTrajectory] = field(default_factory=list)
    prompts: int = 0
    equal_groups: int = 0  # replaced ones included
    lost_groups: int = 0
    stale_groups: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by reason

    def metrics(self) -> dict[str, float]:
        values: dict[str, float] = {
            "groups/prompts": self.prompts,
            "groups/without_variance": self.equal_groups,
            "groups/lost": self.lost_groups,
            "groups/stale": self.stale_groups,
            "failed_samples": self.failures.total(),
        }
        return values | {f"failed_samples/{reason}": count for reason, count in self.failures.items()}


@dataclass(eq=False)
class Group:
    """A prompt that was given out, and what has come back."""

    prompt: SearchTask
    step: int  # of the learner, when it was issued
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by number of the sample

    @property
    def members(self) -> list[SearchTrajectory]:
        """Return the samples that can be trained on, in the order of their numbers: none, or at least two."""
        outcomes = [self.outcomes[number] for number in sorted(self.outcomes)]
        if any(isinstance(outcome, FailedSample) and outcome.reason == POISON for outcome in outcomes):
            return []
        trajectories = [outcome for outcome in outcomes if not isinstance(outcome, FailedSample)]
        return trajectories if len(trajectories) > 1 else []


class GroupWindow:
    """The prompts that are given out and not learned.

    Args:
        drop: is told of each group that is not trained on, before it leaves, and why.
        step: that the learner has taken.
    """

    def __init__(self, settings: GrpoConfig, drop: Callable[[Group, str], None], step: int = 0) -> None:
        self._settings, self._drop = settings, drop
        self._left = (settings.steps - step) * settings.prompts_per_step  # groups, until the last step
        self._open: dict[str, Group] = {}  # by prompt id, in the order of their issue
        self._ready: dict[str, Group] = {}  # those of them that a step may take
        self._learning = 0  # groups
        self._replaced = 0  # since the last step, as what follows
        self._now, self._outcomes = StepGroups(), list[Outcome]()

    @property
    def room(self) -> int:
        """Return how many prompts may be given out; none that no step would take."""
        limit = (self._settings.staleness + 1) * self._settings.prompts_per_step
        return min(limit - self._learning, self._left) - len(self._open)

    @property
    def open(self) -> int:
        """Return how many prompts are given out, without those that are being learned."""
        return len(self._open)

    def issue(self, prompt: SearchTask, step: int) -> None:
        """Add a prompt that is given out.

        Args:
            step: that the learner has taken; never lower than that of a prompt before it.
        """
        self._open[prompt.id.prompt] = Group(prompt, step)
        self._now.prompts += 1

    def add(self, outcome: Outcome) -> None:
        """Take what has become of a sample."""
        self._outcomes.append(outcome)
        self._open[outcome.id.prompt].outcomes[outcome.id.sample] = outcome
        if isinstance(outcome, FailedSample):
            self._now.failures[outcome.reason] += 1
        self._settle()

    def take(self, step: int) -> StepGroups | None:
        """Return the groups of a step, None until they are there; then they are being learned, until `learned`.

        Raises:
            RolloutError: more samples failed than `grpo.max_failed_fraction` tolerates, or no group is left.
        """
        places = list(self._open)
        batch = sorted(self._ready, key=places.index)[: self._settings.prompts_per_step]
        if len(batch) < self._settings.prompts_per_step:
            return None
        rest = [group for prompt, group in self._open.items() if prompt not in batch]
        late = [group for group in rest if self._last_step(group) <= step]
        if self._settings.late == "wait" and not self._fits(rest, step):
            return None
        for group in late:
            self._now.stale_groups += 1
            self._leave(group, "stale")
        result, outcomes = self._now, self._outcomes
        self._now, self._outcomes, self._replaced = StepGroups(), [], 0
        for group in [self._open.pop(prompt) for prompt in batch]:
            del self._ready[group.prompt.id.prompt]
            if not group.members:
                self._drop(group, "lost group")
            result.trained += group.members
        complete(outcomes, self._settings.max_failed_fraction)
        if not result.trained:
            failures = dict(result.failures)
            raise RolloutError(f"step {step}: no group is left to train on; samples failed with {failures}")
        self._learning = len(batch)
        self._left -= len(batch)
        return result

    def learned(self) -> None:
        """Make room for as many prompts as the last step took."""
        self._learning = 0

    def _settle(self) -> None:
        """Decide on groups that are complete: without staleness in the order of their issue, else as they come."""
        for prompt, group in list(self._open.items()):
            if len(group.outcomes) < self._settings.group_size:
                if not self._settings.staleness:
                    return
                continue
            if prompt in self._ready:
                continue
            members = group.members
            if not members:
                self._now.lost_groups += 1
            elif len({trajectory.reward for trajectory in members}) == 1:
                self._now.equal_groups += 1
                if self._replaced < self._settings.replace_equal_groups:
                    self._replaced += 1
                    self._leave(group, "equal")
                    continue
            self._ready[prompt] = group

    def _leave(self, group: Group, reason: str) -> None:
        self._drop(group, reason)
        del self._open[group.prompt.id.prompt]
        self._ready.pop(group.prompt.id.prompt, None)

    def _last_step(self, group: Group) -> int:
        """Return the step that must learn a group, or it is never learned."""
        return group.step + self._settings.staleness + 1

    def _fits(self, rest: list[Group], step: int) -> bool:
        """Tell whether each group that a step leaves can be learned in time by a step after it."""
        share = self._settings.prompts_per_step
        return all(
            sum(self._last_step(group) <= step + later for group in rest) <= later * share
            for later in range(self._settings.staleness + 1)
        )
