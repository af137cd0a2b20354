"""Every stage of a recorded trajectory again, in the order in which they were computed.

A stage is computed from what was recorded before it, never from what was recomputed, so one wrong value shows in its
own stage and in those that depend on it, not in all that follow. The functions are those of the run itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
import torch

from pipelines.evaluation.replay.differences import (
    Differs,
    Finding,
    NotChecked,
    finding,
    same,
    same_numbers,
    same_sequence,
)
from pipelines.evaluation.replay.sources import Sources
from vsr1.environments.registry import environment_of
from vsr1.episode.rewards import RewardError, scored
from vsr1.episode.trajectory import Turn
from vsr1.rl.batch import Example, batch_totals, micro_batches
from vsr1.rl.credit import Credit, credits_of
from vsr1.runs.trajectories import LoggedTrajectory
from vsr1.search.examples import is_trained, weighed_credits

EXACT = 1e-9  # the same sums of the same float64 numbers
SAME_MEAN = 1e-6  # of rewards that were added up in another order
NO_CREDIT = Credit(0.0, 0.0)
Step = tuple[LoggedTrajectory, ...]  # all trajectories of a step


@dataclass(frozen=True)
class Tolerances:
    """Largest distance of a search score and of a log-prob; a step's loss is held to that of a log-prob."""

    score: float
    logprob: float


class Stages(ABC):
    """The checks of one run; what is checked of an episode itself is its environment's."""

    def __init__(self, sources: Sources, tolerances: Tolerances) -> None:
        self._sources, self._tolerances = sources, tolerances
        self._step_shares = lru_cache(1)(self._compute_step_shares)

    def findings(self, logged: LoggedTrajectory, step: Step) -> list[Finding]:
        """Return one finding a stage.

        Args:
            step: all trajectories of the same step, `logged` among them.
        """
        trajectory = logged.trajectory
        return [
            finding("clip", self._clips, trajectory),
            finding("prompt", self._prompts, trajectory),
            finding("parse", self._replies, trajectory),
            *(finding(stage, check, trajectory) for stage, check in self._plays().items()),
            finding("rewards", self._rewards, trajectory),
            finding("advantage", self._advantages, logged, step),
            finding("logprobs", self._logprobs, trajectory),
            finding("grpo", self._loss, logged, step),
        ]

    @abstractmethod
    def _clips(self, trajectory: Any) -> str:
        """Compare the content of what was shown."""

    @abstractmethod
    def _prompts(self, trajectory: Any) -> str:
        """Compare the tokens of the prompts."""

    @abstractmethod
    def _replies(self, trajectory: Any) -> str:
        """Compare the text of the replies and what was read from it."""

    @abstractmethod
    def _plays(self) -> dict[str, Callable[[Any], str]]:
        """Return by stage what plays an episode again and compares what the environment did, and how it ended."""

    @abstractmethod
    def _turn_example(self, trajectory: Any, place: int, credit: Credit) -> Example:
        """Return what the learner trains on of a turn, `place` counted from 0."""

    def _same_text(self, turn: Turn[Any]) -> None:
        text = self._sources.processor.tokenizer.decode(turn.response_token_ids, skip_special_tokens=False)
        same_sequence(f"turn {turn.number}, text of the reply's tokens", turn.text, text)

    def _rewards(self, trajectory: Any) -> str:
        try:
            result = scored(trajectory, environment_of(self._sources.config).rewards(self._sources.config))
        except RewardError as error:
            raise Differs(f"there is no reward: {error}") from error
        same("names of the terms", list(trajectory.terms), list(result.terms))
        for name, value in trajectory.terms.items():
            same_numbers(f"term {name}", [value], [result.terms[name]], EXACT)
        same_numbers("rewards of the turns", trajectory.turn_rewards, result.turn_rewards, EXACT)
        latents = "rewards of the turns' latents"
        same_numbers(latents, trajectory.turn_latent_rewards, result.turn_latent_rewards, EXACT)
        same_numbers("reward", [trajectory.reward], [result.reward], EXACT)
        return f"reward {trajectory.reward:.4f}"

    def _advantages(self, logged: LoggedTrajectory, step: Step) -> str:
        config, recorded = self._sources.config, self._credits(logged)
        trajectories = [member.trajectory for member in step]
        result = credits_of(trajectories, config.grpo.objective, config.agent.max_new_tokens)[step.index(logged)]
        try:
            for name in ("tokens", "latents"):
                old, new = ([getattr(credit, name) for credit in credits] for credits in (recorded, result))
                same_numbers(f"advantages of {name}, by turn", old, new, EXACT)
        except Differs:
            self._check_whole(step)
            raise
        group = sum(trajectory.id.prompt == logged.trajectory.id.prompt for trajectory in trajectories)
        return f"{recorded[0].tokens:+.4f} in turn 1, in a group of {group}"

    def _check_whole(self, step: Step) -> None:
        """Raise `NotChecked` unless all trajectories of a step are here: a run that was killed writing them lacks some.

        Their mean reward tells, which the run logs too.
        """
        number, mean = step[0].step, fmean(member.trajectory.reward for member in step)
        logged = self._sources.scalars(number).get("reward/total", math.nan)
        if not abs(mean - logged) <= SAME_MEAN:
            raise NotChecked(
                f"the {len(step)} trajectories here are not known to be all of step {number}: their mean reward is "
                f"{mean:.6g}, the run logged {logged:.6g}"
            )

    def _weighed(self, step: Step) -> list[list[Credit]]:
        """Return the credits of a step's trajectories as the learner weighs them."""
        credits = [self._credits(member) for member in step]
        return weighed_credits([member.trajectory for member in step], credits, self._sources.config.grpo)

    def _credits(self, logged: LoggedTrajectory) -> list[Credit]:
        if not self._sources.is_training:
            raise NotChecked("an evaluation trains on nothing")
        if logged.credits is None:
            raise NotChecked("the file records no advantages")
        return logged.credits

    def _logprobs(self, trajectory: Any) -> str:
        distances = []
        for place, turn in enumerate(trajectory.turns):
            loss = self._sources.loss(turn.weight_version)
            with torch.no_grad():
                result = loss.logprobs([[self._example(trajectory, place, NO_CREDIT)]]).tolist()
            what = f"turn {turn.number}, log-probs"
            distances.append(same_numbers(what, turn.response_logprobs, result, self._tolerances.logprob))
        every = np.concatenate(distances)
        return f"{len(every)} tokens, differ by {every.max():.1e} at most, {every.mean():.1e} in the mean"

    def _example(self, trajectory: Any, place: int, credit: Credit) -> Example:
        turn, processor = trajectory.turns[place], self._sources.processor
        grids = [processor.grid(self._sources.clip(reference)) for reference in turn.clips]
        due = sum(frames * height * width // processor.merge**2 for frames, height, width in grids)
        if turn.prompt_token_ids.count(processor.video_token) != due:
            raise NotChecked(f"the recorded prompt of turn {turn.number} does not fit its clips")
        return self._turn_example(trajectory, place, credit)

    def _loss(self, logged: LoggedTrajectory, step: Step) -> str:
        self._credits(logged)
        recorded = self._sources.scalars(logged.step).get("loss")
        if recorded is None:
            raise NotChecked(f"scalars.jsonl holds no loss of step {logged.step}")
        self._check_whole(step)
        shares = self._step_shares(step)
        total, own = sum(shares), shares[step.index(logged)]
        same_numbers(f"loss of step {logged.step}", [recorded], [total], self._tolerances.logprob)
        return f"loss of step {logged.step}: {total:.6f}, recorded {recorded:.6f}; share of this one {own:+.6f}"

    def _compute_step_shares(self, step: Step) -> list[float]:
        """Return what each trajectory has of the step's loss, under the weights that the step began with."""
        loss, config = self._sources.loss(step[0].step - 1), self._sources.config
        parts = [
            [
                self._example(member.trajectory, place, credit)
                for place, credit in enumerate(credits)
                if is_trained(member.trajectory.turns[place], config.grpo)
            ]
            for member, credits in zip(step, self._weighed(step), strict=True)
        ]
        totals = batch_totals([example for part in parts for example in part])
        with torch.no_grad():
            return [
                sum(float(loss(batch, totals)[0]) for batch in (micro_batches(part, config.grpo.learner.micro_tokens)))
                for part in parts
            ]
