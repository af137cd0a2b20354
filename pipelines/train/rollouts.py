"""Plays groups ahead of the learner: gives prompts out while there is room, and hands the groups of each step over.

The driver's main thread owns ledger, prompt stream and pump. Whatever the learner does it does in another thread, while
this one goes on pumping.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, TypeVar

from actors.rollout import Sampling
from pipelines.stage.progress import Load
from pipelines.stage.pump import TICK_S
from pipelines.stage.tasks import PromptStream
from pipelines.stage.workers import Workers
from pipelines.train.commits import Saved
from pipelines.train.groups import Group, GroupWindow, StepGroups
from vsr1.config import Config
from vsr1.episode.sample import FailedSample
from vsr1.ledger import Frame, Ledger
from vsr1.runs.events import EventLog
from vsr1.search.record import SearchTrajectory

NOTICE_S = 0.05  # after which the end of what the learner does is noticed
Result = TypeVar("Result")


class GroupRollouts:
    """Plays the prompts of a stream.

    Args:
        saved: where the run goes on from; its open prompts come first.
        events: gets what is dropped, but for what the policy itself decides.
        on_trajectory: gets each trajectory as it ends, while others are still played.
    """

    def __init__(
        self,
        workers: Workers,
        stream: PromptStream,
        ledger: Ledger,
        config: Config,
        saved: Saved,
        events: EventLog,
        on_trajectory: Callable[[SearchTrajectory], None] = lambda _: None,
    ) -> None:
        self._events = events
        self._workers, self._stream, self._ledger, self._config = workers, stream, ledger, config
        self._on_trajectory = on_trajectory
        self.step, self.weights = saved.step, saved.weights  # that the learner has taken; that the engines hold
        self._reopened = deque(saved.past.open)
        rollout = config.rollout
        sampling = Sampling(
            config.retrieval.top_k,
            rollout.temperature,
            config.grpo.latents.sigma,
            top_p=rollout.top_p,
            tokens=rollout.top_k,
        )
        self._pump = workers.pump
        self._play = self._pump.open("train", config.agent, sampling, ledger)
        self._window = GroupWindow(config.grpo, self._drop, saved.step)

    def take(self, step: int) -> StepGroups:
        """Return the groups of a step once they are there; errors as of `GroupWindow.take` and `RolloutPump.poll`."""
        while (groups := self._window.take(step)) is None:
            self._pump_once(TICK_S)
            now = self._pump.occupancy(self._play)
            self._workers.progress.now(
                f"rollouts of step {step}: {now.finished} samples so far, {self._window.open} prompts given out",
                rollout=Load(now.rollout_workers, now.waiting),
                rewards=Load(now.reward_workers),
                retrieval=Load(1),
            )
        return groups

    def during(self, work: Future[Result]) -> Result:
        """Go on playing until a work of the learner ends, and return or raise what it does."""
        while not work.done():
            if self._pump.is_idle and not self._window.room:
                wait([work], timeout=TICK_S)
            self._pump_once(NOTICE_S)
        return work.result()

    def learned(self, groups: StepGroups, step: int, weights: int) -> None:
        """Close the samples of a step that is learned and make room for as many prompts.

        Args:
            weights: version that the engines hold by now.
        """
        self._ledger.train([trajectory.id for trajectory in groups.trained], step)
        self._stream.learned(groups.trained)
        self._window.learned()
        self.step, self.weights = step, weights

    def snapshot(self) -> list[Frame]:
        """Return where every open sample is (see `Ledger.snapshot`)."""
        return self._ledger.snapshot()

    def saved(self, groups: StepGroups, elapsed_s: float) -> Saved:
        """Return where a run goes on from after a step that was learned.

        Args:
            groups: of that step.
            elapsed_s: that training took so far.
        """
        turns = (turn for trajectory in groups.trained for turn in trajectory.turns)
        versions = sorted({turn.record.index_version for turn in turns})
        success = self._stream.success.counts
        return Saved(
            self.step, self.weights, self._stream.position, elapsed_s, index_versions=versions, success=success
        )

    def metrics(self) -> dict[str, float]:
        """Return how full the queues are, and what was dropped so far by reason."""
        now, closed = self._pump.occupancy(self._play), self._ledger.closed
        values: dict[str, float] = {
            "queue/prompts": self._window.open,
            "queue/episodes": now.episodes,
            "queue/waiting": now.waiting,
        }
        return values | {f"dropped/{reason}": float(count) for reason, count in closed.items() if reason != "trained"}

    def _pump_once(self, timeout_s: float) -> None:
        while self._window.room > 0:
            self._give_out()
        self._pump.poll(timeout_s)
        while self._play.outcomes:
            outcome = self._play.outcomes.popleft()
            self._window.add(outcome)
            if isinstance(outcome, FailedSample):
                self._note_drop(
                    outcome.id.prompt, outcome.reason, sample=outcome.id.sample, message=outcome.message[:300]
                )
            else:
                self._on_trajectory(outcome)

    def _give_out(self) -> None:
        prompt = self._stream.task(self._reopened.popleft()) if self._reopened else next(self._stream)
        entries = self._ledger.issue(prompt.id.prompt, self._config.grpo.group_size, self.step, self.weights)
        self._window.issue(prompt, entries[0].step)
        for entry in entries:
            failure = self._ledger.failure_of(entry.id)
            if failure is None:
                self._play.add(replace(prompt, id=entry.id))
            else:
                self._ledger.drop(entry.id, *failure)
                self._window.add(FailedSample(entry.id, *failure))

    def _drop(self, group: Group, reason: str) -> None:
        self._pump.drop(self._play, group.prompt.id.prompt, reason)
        if reason == "stale":
            self._note_drop(group.prompt.id.prompt, reason)

    def _note_drop(self, prompt: str, reason: str, **details: Any) -> None:
        self._events.write("dropped", reason=reason, prompt=prompt, **details)
