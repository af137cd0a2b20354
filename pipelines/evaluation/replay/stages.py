"""Every stage of a recorded trajectory again, in the order in which they were computed.

A stage is computed from what was recorded before it, never from what was recomputed, so one wrong value shows in its
own stage and in those that depend on it, not in all that follow. The functions are those of the run itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
from pipelines.evaluation.replay.search import check_searches
from pipelines.evaluation.replay.sources import Sources
from pipelines.train.examples import is_trained, turn_example
from vsr1.episode.trajectory import Trajectory
from vsr1.rewards.score import scored
from vsr1.rewards.terms import RewardError
from vsr1.rl.batch import Example, batch_totals, micro_batches
from vsr1.rl.credit import Credit, credits_of
from vsr1.runs.scalars import read_scalars
from vsr1.runs.trajectories import LoggedTrajectory
from vsr1.search.environment import seconds_shown
from vsr1.search.parse import last_element, parse_reply
from vsr1.search.prompts import agent_prompt, turn_prompt

EXACT = 1e-9  # the same sums of the same float64 numbers
NO_CREDIT = Credit(0.0, 0.0)
Step = tuple[LoggedTrajectory, ...]  # all trajectories of a step


@dataclass(frozen=True)
class Tolerances:
    """Largest distance of a search score and of a log-prob; a step's loss is held to that of a log-prob."""

    score: float
    logprob: float


class Stages:
    def __init__(self, sources: Sources, tolerances: Tolerances) -> None:
        self._sources, self._tolerances = sources, tolerances
        self._step_shares = lru_cache(1)(self._compute_step_shares)

    def findings(self, logged: LoggedTrajectory, step: Step) -> list[Finding]:
        """One a stage.

        Args:
            step: all trajectories of the same step, `logged` among them.
        """
        one = logged.trajectory
        return [
            finding("clip", self._clips, one),
            finding("prompt", self._prompts, one),
            finding("parse", self._replies, one),
            finding("retrieval", check_searches, self._sources, one, self._tolerances.score),
            finding("rewards", self._rewards, one),
            finding("advantage", self._advantages, logged, step),
            finding("logprobs", self._logprobs, one),
            finding("grpo", self._loss, logged, step),
        ]

    def _clips(self, one: Trajectory) -> str:
        for segment in one.segments:
            found = self._sources.clip_hash(segment)
            same(f"turn {segment.turn}, content of clip {segment.video_id}", segment.clip_hash, found)
        return f"{len(one.segments)} clips"

    def _prompts(self, one: Trajectory) -> str:
        processor = self._sources.processor
        prompt = turn_prompt(one.query, agent_prompt(self._sources.agent))
        for segment in one.segments:
            found = processor.prompt_ids(prompt, self._sources.clip(segment))
            same_sequence(f"turn {segment.turn}, prompt tokens", segment.prompt_token_ids, found)
        return f"{sum(len(segment.prompt_token_ids) for segment in one.segments)} tokens"

    def _replies(self, one: Trajectory) -> str:
        tokenizer = self._sources.processor.tokenizer
        for segment in one.segments:
            turn = f"turn {segment.turn}"
            text = tokenizer.decode(segment.response_token_ids, skip_special_tokens=False)
            same_sequence(f"{turn}, text of the reply's tokens", segment.text, text)
            seconds = seconds_shown(self._sources.clip(segment), one.gt_video, one.gt_duration)
            reply = parse_reply(segment.text, seconds)
            same(f"{turn}, verdict", segment.verdict, reply.verdict)
            same(f"{turn}, span", segment.span, reply.span)
            if self._sources.agent.refinement == "text":
                rewrite = (last_element(segment.text, "query") or "").strip() or None
                same(f"{turn}, rewrite", segment.rewrite, rewrite)
        return f"{sum(len(segment.response_token_ids) for segment in one.segments)} tokens"

    def _rewards(self, one: Trajectory) -> str:
        try:
            again = scored(one, self._sources.config.rewards)
        except RewardError as error:
            raise Differs(f"there is no reward: {error}") from error
        same("names of the terms", list(one.terms), list(again.terms))
        for name, value in one.terms.items():
            same_numbers(f"term {name}", [value], [again.terms[name]], EXACT)
        same_numbers("rewards of the turns", one.turn_rewards, again.turn_rewards, EXACT)
        retrieval = "retrieval rewards of the turns"
        same_numbers(retrieval, one.turn_retrieval_rewards, again.turn_retrieval_rewards, EXACT)
        same_numbers("reward", [one.reward], [again.reward], EXACT)
        return f"reward {one.reward:.4f}"

    def _advantages(self, logged: LoggedTrajectory, step: Step) -> str:
        config = self._sources.config
        recorded = self._credits(logged)
        trajectories = [member.trajectory for member in step]
        again = credits_of(trajectories, config.grpo.objective, config.agent.max_new_tokens)[step.index(logged)]
        for name in ("tokens", "latents"):
            found = [getattr(credit, name) for credit in again]
            same_numbers(f"advantages of {name}, by turn", [getattr(c, name) for c in recorded], found, EXACT)
        group = sum(member.trajectory.query_id == logged.trajectory.query_id for member in step)
        return f"{recorded[0].tokens:+.4f} in turn 1, in a group of {group}"

    def _credits(self, logged: LoggedTrajectory) -> list[Credit]:
        if not self._sources.is_training:
            raise NotChecked("an evaluation trains on nothing")
        if logged.credits is None:
            raise NotChecked("the file records no advantages")
        return logged.credits

    def _logprobs(self, one: Trajectory) -> str:
        apart = []
        for number, segment in enumerate(one.segments):
            loss = self._sources.loss(segment.weight_version)
            with torch.no_grad():
                found = loss.logprobs([self._example(one, number, NO_CREDIT)]).tolist()
            what = f"turn {segment.turn}, log-probs"
            apart.append(same_numbers(what, segment.response_logprobs, found, self._tolerances.logprob))
        gaps = np.concatenate(apart)
        return f"{len(gaps)} tokens, differ by {gaps.max():.1e} at most, {gaps.mean():.1e} in the mean"

    def _example(self, one: Trajectory, number: int, credit: Credit) -> Example:
        segment = one.segments[number]
        clip = self._sources.clip(segment)
        grid = self._sources.processor.grid(clip)
        due = grid[0] * grid[1] * grid[2] // self._sources.processor.merge**2
        if segment.prompt_token_ids.count(self._sources.processor.video_token) != due:
            raise NotChecked(f"the recorded prompt of turn {segment.turn} does not fit its clip")
        negatives = self._sources.task(one.query_id).negatives
        return turn_example(one, number, credit, negatives, self._sources.config.grpo, self._sources.agent)

    def _loss(self, logged: LoggedTrajectory, step: Step) -> str:
        self._credits(logged)
        path = self._sources.folder / "scalars.jsonl"
        if not path.is_file():
            raise NotChecked(f"{path} is missing, and with it the loss of step {logged.step}")
        rows = [row for row in read_scalars(path) if (row["stage"], row["step"]) == ("grpo", logged.step)]
        recorded = [row["value"] for row in rows if row["name"] == "loss"]
        if not recorded:
            raise NotChecked(f"{path} holds no loss of step {logged.step}")
        shares = self._step_shares(step)
        total = sum(shares)
        same_numbers(f"loss of step {logged.step}", recorded[-1:], [total], self._tolerances.logprob)
        own = shares[step.index(logged)]
        return f"loss of step {logged.step}: {total:.6f}, recorded {recorded[-1]:.6f}; share of this one {own:+.6f}"

    def _compute_step_shares(self, step: Step) -> list[float]:
        """What each trajectory has of the step's loss, under the weights that the step began with."""
        loss, config = self._sources.loss(step[0].step - 1), self._sources.config
        parts = [
            [
                self._example(member.trajectory, number, credit)
                for number, credit in enumerate(self._credits(member))
                if is_trained(member.trajectory.segments[number], config.grpo)
            ]
            for member in step
        ]
        totals = batch_totals([example for part in parts for example in part])
        with torch.no_grad():
            return [
                sum(float(loss(batch, totals)[0]) for batch in (micro_batches(part, config.grpo.learner.micro_tokens)))
                for part in parts
            ]
