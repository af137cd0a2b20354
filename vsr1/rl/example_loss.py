"""The loss of examples under a policy: what both stages minimise, on whatever process holds the weights.

Everything is a share of the whole batch, so the losses of its parts add up however it is cut. Stage 1 takes token
cross-entropy, Stage 2 a policy loss on the engine's own tokens and, where latents are actions, on its own latents; both
add the retrieval loss, whose gradient runs through the frozen embedder into the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vsr1.engine.latent_table import latent_noise
from vsr1.model.attention import ALL, LayerOptions
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row, States, latent_means, run_latents, run_rows, token_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.upload import upload
from vsr1.model.vision import VisionFeatures
from vsr1.rl.batch import BatchTotals, Example, LatentActions, LearnerError
from vsr1.rl.features import ClipFeatures, ReadClip
from vsr1.rl.flops import TRAINED, ModelFlops
from vsr1.rl.meter import GIB, Meter
from vsr1.rl.objective import (
    TokenBatch,
    Values,
    branch_objective,
    equal_gradients,
    latent_objective,
    token_objective,
)
from vsr1.rl.refined import RefinedQueries, VideoVectors
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, SftConfig


@dataclass
class Latents:
    """Of the rows of a pass that latents follow, n of them: what the engine sampled, where it did."""

    rows: list[int]
    noise: torch.Tensor  # [n, depth, R] that the engine added, in units of sigma; zero where it added none
    values: torch.Tensor | None  # [n, depth, R]

    def inputs(self, policy: VideoSearchPolicy) -> tuple[list[int], torch.Tensor] | None:
        """Return the rows and the inputs that follow them, if they are known and there are any."""
        if self.values is None or self.values.shape[1] == 1:
            return None
        return self.rows, policy.latent_input(self.values[:, :-1])


class ExampleLoss:
    """The loss of a stage under `policy`; `reference` is what a KL term compares with, `read_clip` gives the clips.

    The retrieval loss runs through `embedder`, which the search has too, or through that of `known` with its vectors.

    A pass is groups of examples that share their prompt and its clips (`vsr1.rl.batch.micro_batches`).
    """

    def __init__(
        self,
        stage: SftConfig | GrpoConfig,
        agent: AgentConfig,
        policy: VideoSearchPolicy,
        reference: VideoSearchPolicy | None,
        embedder: Embedder,
        vectors: VideoVectors,
        processor: ClipProcessor,
        read_clip: ReadClip,
        *,
        temperature: float = 1.0,
        known: tuple[Embedder, VideoVectors] | None = None,
    ) -> None:
        self.policy, self.meter = policy, Meter()
        self._stage, self._retrieval, self._agent = stage, stage.retrieval_loss, agent
        self._reference = reference
        learner = stage.learner
        self._options = LayerOptions(learner.gradient_checkpointing, learner.compile)
        searched = embedder, vectors
        self.refined = RefinedQueries(policy, known or searched, searched, self._retrieval, self._options)
        budget = int(learner.vision_cache_gib * GIB)
        self._features = ClipFeatures(policy, processor, read_clip, budget, self._options)
        self._flops = ModelFlops.of(policy.config)
        self._end_token = int(processor.tokenizer.eos_token_id)
        self._temperature = temperature

    def __call__(self, groups: list[list[Example]], totals: BatchTotals) -> tuple[torch.Tensor, Values]:
        """Return the share of the whole batch's loss that these examples have, with gradient, and what to log of it."""
        with self.meter.part("encode"):
            rows, features = self.rows(groups)
        with self.meter.part("forward"):
            return self._loss(groups, rows, features, totals)

    def _loss(
        self, groups: list[list[Example]], rows: list[list[Row]], features: list[VisionFeatures], totals: BatchTotals
    ) -> tuple[torch.Tensor, Values]:
        examples = [example for group in groups for example in group]
        is_sampled = isinstance(self._stage, GrpoConfig)
        latents = self._latents(examples)
        states = run_rows(
            self.policy.model,
            rows,
            features,
            latents=None if latents is None else latents.inputs(self.policy),
            keep=latents is not None and self._agent.depth > 1 and (not is_sampled or self._passes > 1),
            options=self._options,
        )
        flat, end = [row for group in rows for row in group], None if is_sampled else self._end_token
        logprobs, entropy = token_logprobs(self.policy, states, flat, self._temperature, end)
        flags = [flag for example in examples for flag in example.trained]
        ends, logprobs, entropy = logprobs[len(flags) :], logprobs[: len(flags)], entropy[: len(flags)]
        places = [place for place, flag in enumerate(flags) if flag]
        trained = ALL if all(flags) else upload(places, logprobs.device, torch.int64)
        if is_sampled:
            reference = self._reference_logprobs(rows, features)
            total, counted = self._policy_loss(examples, logprobs, reference, trained, totals)
        else:
            total = -(logprobs[trained].sum() + ends.sum()) / totals.tokens
            counted = {"token_loss": -logprobs.detach()[trained].sum() / totals.tokens}
        counted["entropy"] = entropy.detach()[trained].sum() / totals.tokens
        if latents is not None:
            for part, values in self._latent_losses(examples, states, latents, totals):
                total = total + part
                counted |= values
        counted["loss"] = total.detach()
        self._count(groups, rows)
        return total, counted

    def logprobs(self, groups: list[list[Example]]) -> torch.Tensor:
        """Return log-probs of the replies of one pass, float32 [tokens of all], one example after another."""
        rows, features = self.rows(groups)
        states = run_rows(self.policy.model, rows, features, options=self._options)
        return token_logprobs(self.policy, states, [row for group in rows for row in group], self._temperature)[0]

    def rows(self, groups: list[list[Example]]) -> tuple[list[list[Row]], list[VisionFeatures]]:
        """Return the rows of a pass and what they show.

        Raises:
            LearnerError: a reply without tokens.
            ClipError: a clip is not the one that was shown, or cannot be read.
        """
        for example in (example for group in groups for example in group):
            if not example.response_ids:
                raise LearnerError(f"a reply about {_named(example)} has no token; leave it out of the batch")
        seen, blank = self._features(reference for group in groups for reference in group[0].clips)
        places = {reference: place for place, reference in enumerate(seen)}
        rows = []
        for group in groups:
            shown = tuple(places[reference] for reference in group[0].clips)
            grids = tuple(seen[reference][1] for reference in group[0].clips)
            rows.append([Row(group[0].prompt_ids, example.response_ids, shown, grids) for example in group])
        return rows, [feature for feature, _ in seen.values()] or ([blank] if blank else [])

    @property
    def _passes(self) -> int:
        return min(self._retrieval.latent_passes, self._agent.depth)

    def _count(self, groups: list[list[Example]], rows: list[list[Row]]) -> None:
        """Add the operations of a pass to the step's work."""
        work, flops, columns = self.meter.work, self._flops, max(self._agent.depth - 1, 0)
        forward, is_trained = TRAINED + (self._reference is not None), self._features.is_trained
        for group, own in zip(groups, rows, strict=True):
            words = [len(example.response_ids) for example in group]
            replies = [
                (count + columns * _has_latents(example), count) for count, example in zip(words, group, strict=True)
            ]
            prompt = len(group[0].prompt_ids)
            clips = sum(flops.clip(grid, is_trained=is_trained) for grid in own[0].grids)
            work.flops += forward * flops.prompt(prompt, replies)
            work.unshared_flops += sum(forward * flops.prompt(prompt, [reply]) + clips for reply in replies)
            work.tokens += sum(words) + prompt * len(group)
        work.flops += sum(flops.clip(grid, is_trained=is_trained) for grid in self._features.encoded)
        work.clips += len(self._features.encoded)
        self._features.encoded.clear()

    def _reference_logprobs(self, rows: list[list[Row]], features: list[VisionFeatures]) -> torch.Tensor | None:
        """Return log-probs under the reference, None without one; its vision tower is the policy's, which is frozen."""
        if self._reference is None:
            return None
        with torch.no_grad():
            states = run_rows(self._reference.model, rows, features, options=self._options)
            flat = [row for group in rows for row in group]
            return token_logprobs(self._reference, states, flat, self._temperature)[0]

    def _policy_loss(
        self,
        examples: list[Example],
        logprobs: torch.Tensor,
        reference: torch.Tensor | None,
        trained: torch.Tensor | slice,
        totals: BatchTotals,
    ) -> tuple[torch.Tensor, Values]:
        """Return the policy loss of the tokens that are `trained`: int64 indices of log-probs and reference, or all."""
        assert isinstance(self._stage, GrpoConfig)
        sampled = [example.sampled for example in examples if example.sampled]
        lengths = [sum(example.trained) for example in examples]
        device, dtype = logprobs.device, logprobs.dtype
        behaviour = upload([logprob for one in sampled for logprob in one.logprobs], device, dtype)
        old = [logprob for one in sampled for logprob in one.old or []]  # all replies have them, or none
        advantages = torch.tensor([one.advantage for one in sampled]).repeat_interleave(torch.tensor(lengths))
        batch = TokenBatch(
            logprobs[trained],
            behaviour[trained],
            None if reference is None else reference[trained],
            upload(advantages, device, dtype),
            lengths,
            upload(old, device, dtype)[trained] if old else None,
        )
        return token_objective(batch, self._stage.objective, totals, self._agent.max_new_tokens)

    def _latents(self, examples: list[Example]) -> Latents | None:
        """Return what is known of the latents of a pass, None where the stage has no loss on them.

        Where no example has latents, the first stands in, with weight zero (the ranks' rule, `vsr1.rl`).
        """
        depth, is_sampled = self._agent.depth, isinstance(self._stage, GrpoConfig)
        are_actions = isinstance(self._stage, GrpoConfig) and self._stage.latents.are_trained
        if not depth or not (are_actions or self._retrieval.weight > 0):
            return None
        rows = [i for i, example in enumerate(examples) if _has_latents(example)] or [0]
        shape = len(rows), depth, self.policy.config.refine_dim
        noise, values = torch.zeros(shape), torch.zeros(shape) if is_sampled else None
        for place, example in enumerate(examples[row] for row in rows):
            if example.latent_actions:
                noise[place] = _noise(example.latent_actions)
            if values is not None and _has_latents(example):
                values[place] = _sampled(example, shape[1:])
        device = self.policy.device
        return Latents(rows, upload(noise, device), None if values is None else upload(values, device))

    def _latent_losses(
        self, examples: list[Example], states: States, known: Latents, totals: BatchTotals
    ) -> Iterator[tuple[torch.Tensor, Values]]:
        """Yield the losses that reach the heads."""
        rows, passes = known.rows, self._passes
        settings = self._stage.latents if isinstance(self._stage, GrpoConfig) else None
        if known.values is None:
            values = self._rolled(states, rows)
            means = run_latents(self.policy, states, rows, values[:, :-1], self._options)
        else:
            values = known.values
            means = latent_means(self.policy, states, rows)
        losses: list[tuple[torch.Tensor, Values]] = []
        if self._retrieval.weight > 0:
            draws = settings.sigma * known.noise if settings else 0.0
            latents = means + draws
            for _ in range(1, passes):
                before = (values + (latents - latents.detach()))[:, :-1]  # the values with the latents' gradient
                latents = run_latents(self.policy, states, rows, before, self._options) + draws
            losses.append(self._retrieval_part(examples, rows, latents, totals))
        if settings and settings.are_trained:
            is_compared = settings.guided or settings.weigh == "gradient"  # with the retrieval loss
            gradient = torch.autograd.grad(losses[0][0], means, retain_graph=True)[0] if is_compared else None
            acting, counted = self._action_loss(examples, known, values, means, gradient, totals)
            if gradient is not None and settings.weigh == "gradient":
                scale = settings.weight * equal_gradients(acting, gradient, means)
                acting, counted = scale * acting, counted | {"latents/scale_max": scale}
            losses.append((acting, counted))
        yield from losses

    def _action_loss(
        self,
        examples: list[Example],
        known: Latents,
        values: torch.Tensor,
        means: torch.Tensor,
        gradient: torch.Tensor | None,
        totals: BatchTotals,
    ) -> tuple[torch.Tensor, Values]:
        """Return the policy loss of the latents of rows: of what the engine sampled, or of branches from its means.

        Args:
            gradient: of the retrieval loss at the means; where branches are guided they differ in its directions.
        """
        assert isinstance(self._stage, GrpoConfig)
        settings, rows = self._stage.latents, known.rows
        if settings.branches:
            targets = {i: target for i, row in enumerate(rows) if (target := examples[row].target)}
            if not targets:
                return 0 * means.sum(), {}
            at = upload(list(targets), means.device)
            shown = [{clip.video_id for clip in examples[rows[place]].clips} for place in targets]
            rewards = partial(self.refined.branch_rewards, list(targets.values()), shown)
            guide = gradient[at] if settings.guided and gradient is not None else None
            return branch_objective(means[at], rewards, settings, totals, guide)
        places = [place for place, row in enumerate(rows) if examples[row].latent_actions]
        if not places:
            return 0 * means.sum(), {}
        actions = [examples[rows[place]].latent_actions for place in places]
        advantages = upload([action.advantage for action in actions if action], means.device)
        at = upload(places, means.device)
        return latent_objective(values[at], means[at], known.noise[at], advantages, settings, totals)

    def _retrieval_part(
        self, examples: list[Example], rows: list[int], latents: torch.Tensor, totals: BatchTotals
    ) -> tuple[torch.Tensor, Values]:
        """Return the share of the retrieval loss of the latents [n, N, R] of rows, weighted."""
        targets = {i: target for i, row in enumerate(rows) if (target := examples[row].target)}
        if not targets:
            return 0 * self.policy.soft_tokens(latents).sum(), {}
        refined = latents[upload(list(targets), latents.device)]
        loss = self.refined.losses(list(targets.values()), refined).sum() / totals.refined
        norms = refined.detach().norm(dim=-1).mean(dim=-1)
        counted = {"retrieval_loss": loss.detach(), "latents/norm": norms.sum() / totals.refined}
        return self._retrieval.weight * loss, counted

    @torch.no_grad()
    def _rolled(self, states: States, rows: list[int]) -> torch.Tensor:
        """Return the latents after rows that were not sampled, float32 [n, depth, R], without gradient.

        Each round makes one more of them final: the first follows from the row alone, the next from those before it.
        """
        values = latent_means(self.policy, states, rows).expand(-1, self._agent.depth, -1)
        for _ in range(1, self._agent.depth):
            values = run_latents(self.policy, states, rows, values[:, :-1], self._options)
        return values


def _has_latents(example: Example) -> bool:
    return example.target is not None or example.latent_actions is not None


def _sampled(example: Example, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the latents of an example as the engine made them, float32 [N, R].

    Raises:
        LearnerError: it lacks them, or they have another shape.
    """
    actions, target = example.latent_actions, example.target
    values = actions.values if actions else target.latents if target else None
    if values is None or values.shape != shape:
        raise LearnerError(
            f"a reply about {_named(example)} needs the engine's latents of shape {list(shape)}, "
            f"got {'none' if values is None else list(values.shape)}"
        )
    return torch.tensor(values)


def _named(example: Example) -> str:
    return ", ".join(clip.video_id for clip in example.clips) or "no clip"


def _noise(action: LatentActions) -> torch.Tensor:
    """Return the noise that the engine added to the latents, in units of sigma, float32 [N, R]."""
    depth, width = action.values.shape
    return torch.stack([latent_noise(action.seed, step, width) for step in range(depth)])
