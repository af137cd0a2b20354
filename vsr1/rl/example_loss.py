"""The loss of examples under a policy: what both stages minimise, on whatever process holds the weights.

Everything is a share of the whole batch, so the losses of its parts add up however it is cut. Stage 1 takes token
cross-entropy, Stage 2 a policy loss on the engine's own tokens and, where latents are actions, on its own latents; both
add the retrieval loss, whose gradient runs through the frozen embedder into the latents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vsr1.engine.latent_table import latent_noise
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder
from vsr1.model.forward import ForwardState, Row, prefill, roll_latents, token_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import VisionFeatures, blank_clip, encode_clips
from vsr1.rl.batch import BatchTotals, Example, LatentActions, RetrievalTarget
from vsr1.rl.losses import retrieval_loss
from vsr1.rl.objective import Counted, TokenBatch, latent_objective, token_objective
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, SftConfig
from vsr1.video.clips import Clip, ClipReference

ReadClip = Callable[[ClipReference], Clip]  # and raises where its content is not the one that is named


@dataclass
class VideoVectors:
    """Corpus vectors of a split: unit rows [videos, E] and the row of each video id."""

    matrix: torch.Tensor
    rows: dict[str, int]

    def nearest(self, queries: torch.Tensor, count: int) -> list[list[int]]:
        """Return the rows of the `count` videos of the split that are most similar to each of `queries` [n, E]."""
        if not count:
            return [[] for _ in queries]
        scores = queries.detach().to(self.matrix) @ self.matrix.T
        rows: list[list[int]] = scores.topk(min(count, len(self.matrix))).indices.tolist()
        return rows


class ExampleLoss:
    """The loss of a stage under `policy`; `reference` is what a KL term compares with, `read_clip` gives the clips."""

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
    ) -> None:
        self.policy, self.embedder = policy, embedder
        self._stage, self._retrieval, self._agent = stage, stage.retrieval_loss, agent
        self._reference, self._vectors, self._processor = reference, vectors, processor
        self._read_clip = read_clip
        self._end_token = int(processor.tokenizer.eos_token_id)
        self._temperature = temperature

    def __call__(self, examples: list[Example], totals: BatchTotals) -> tuple[torch.Tensor, Counted]:
        """Return the share of the whole batch's loss that these examples have, with gradient, and what to log of it."""
        rows, features, state = self.prefill(examples)
        logprobs, entropy = token_logprobs(self.policy, state, rows, self._temperature)
        trained = torch.tensor([flag for example in examples for flag in example.trained], device=logprobs.device)
        if isinstance(self._stage, GrpoConfig):
            reference = self._reference_logprobs(rows, features)
            total, counted = self._policy_loss(examples, logprobs, reference, trained, totals)
        else:
            end = self.policy.lm_head(state.after_norm[:, -1]).float().log_softmax(-1)[:, self._end_token]
            total = -(logprobs.sum() + end.sum()) / totals.tokens
            counted = {"token_loss": -float(logprobs.detach().sum()) / totals.tokens}
        counted["entropy"] = float(entropy.detach()[trained].sum()) / totals.tokens
        for part, values in self._latent_losses(examples, state, totals):
            total = total + part
            counted |= values
        counted["loss"] = float(total.detach())
        return total, counted

    def logprobs(self, examples: list[Example]) -> torch.Tensor:
        """Return log-probs of the replies of one pass, float32 [tokens of all], one example after another."""
        rows, _, state = self.prefill(examples)
        return token_logprobs(self.policy, state, rows, self._temperature)[0]

    def prefill(self, examples: list[Example]) -> tuple[list[Row], list[VisionFeatures], ForwardState]:
        """Return the rows of a pass, what they show, and their states.

        A pass without video runs the tower on a blank clip that no row shows (the ranks' rule, `vsr1.rl`).
        """
        places: dict[ClipReference, int] = {}
        for reference in (reference for example in examples for reference in example.clips):
            places.setdefault(reference, len(places))
        clips = [self._processor.process(self._read_clip(reference), self.policy.device) for reference in places]
        rows = []
        for example in examples:
            shown = tuple(places[reference] for reference in example.clips)
            grids = tuple(clips[place].grid for place in shown)
            rows.append(Row(example.prompt_ids, example.response_ids, shown, grids))
        visual = self.policy.model.visual
        inputs = [(clip.pixels, clip.grid) for clip in clips] or [blank_clip(visual)]
        with torch.set_grad_enabled(any(parameter.requires_grad for parameter in visual.parameters())):
            pixels = [pixels.to(self.policy.dtype) for pixels, _ in inputs]
            features = encode_clips(visual, pixels, [grid for _, grid in inputs])
        return rows, features, prefill(self.policy.model, rows, features, keep_cache=True)

    def _reference_logprobs(self, rows: list[Row], features: list[VisionFeatures]) -> torch.Tensor | None:
        """Return log-probs under the reference, None without one; its vision tower is the policy's, which is frozen."""
        if self._reference is None:
            return None
        with torch.no_grad():
            state = prefill(self._reference.model, rows, features, keep_cache=False)
            return token_logprobs(self._reference, state, rows, self._temperature)[0]

    def _policy_loss(
        self,
        examples: list[Example],
        logprobs: torch.Tensor,
        reference: torch.Tensor | None,
        trained: torch.Tensor,
        totals: BatchTotals,
    ) -> tuple[torch.Tensor, Counted]:
        """Return the policy loss of the tokens that are `trained`, bool [tokens], as are log-probs and reference."""
        assert isinstance(self._stage, GrpoConfig)
        sampled = [example.sampled for example in examples if example.sampled]
        lengths = [sum(example.trained) for example in examples]
        behaviour = torch.tensor([logprob for one in sampled for logprob in one.logprobs]).to(logprobs)
        old = [logprob for one in sampled for logprob in one.old or []]  # all replies have them, or none
        advantages = torch.tensor([one.advantage for one in sampled]).repeat_interleave(torch.tensor(lengths))
        batch = TokenBatch(
            logprobs[trained],
            behaviour[trained],
            None if reference is None else reference[trained],
            advantages.to(logprobs),
            lengths,
            torch.tensor(old).to(logprobs)[trained] if old else None,
        )
        return token_objective(batch, self._stage.objective, totals, self._agent.max_new_tokens)

    def _latent_losses(
        self, examples: list[Example], state: ForwardState, totals: BatchTotals
    ) -> Iterator[tuple[torch.Tensor, Counted]]:
        """Yield the losses that reach the heads; every row of the pass is rolled (the ranks' rule, `vsr1.rl`)."""
        depth, device = self._agent.depth, state.after_norm.device
        settings = self._stage.latents if isinstance(self._stage, GrpoConfig) else None
        draws = None
        if depth and settings and settings.sigma:
            actions = {i: one for i, example in enumerate(examples) if (one := example.latent_actions)}
            sampled = torch.zeros(len(examples), depth, self.policy.config.refine_dim)
            noise = torch.zeros_like(sampled)
            for i, action in actions.items():
                sampled[i], noise[i] = torch.tensor(action.values), _noise(action)
            sampled, noise = sampled.to(device), noise.to(device)
            draws = settings.sigma * noise
            if settings.weight:
                means = roll_latents(self.policy, state, depth, actions=sampled)
                if rows := list(actions):
                    advantages = torch.tensor([action.advantage for action in actions.values()], device=device)
                    yield latent_objective(sampled[rows], means[rows], noise[rows], advantages, settings, totals)
                else:
                    yield 0 * means.sum(), {}
        if depth and self._retrieval.weight > 0:
            latents = roll_latents(self.policy, state, depth, draws)
            targets = {i: example.target for i, example in enumerate(examples) if example.target}
            if not targets:
                yield 0 * self.policy.soft_tokens(latents).sum(), {}
                return
            refined = latents[list(targets)]
            loss = self.retrieval_losses(list(targets.values()), refined).sum() / totals.refined
            norms = refined.detach().norm(dim=-1).mean(dim=-1)
            yield (
                self._retrieval.weight * loss,
                {"retrieval_loss": float(loss.detach()), "latents/norm": float(norms.sum()) / totals.refined},
            )

    def retrieval_losses(self, targets: list[RetrievalTarget], latents: torch.Tensor) -> torch.Tensor:
        """Return the losses [n] of queries refined by `latents` [n, N, R], each against its target."""
        queries = []
        for target, own in zip(targets, latents, strict=True):
            earlier = target.earlier_latents
            queries.append(own if earlier is None else torch.cat([torch.tensor(earlier).to(own), own]))
        soft = self.policy.soft_tokens(torch.cat(queries)).split([len(query) for query in queries])  # the ranks' rule
        vectors = self.embedder.query_vectors([target.query for target in targets], list(soft))
        nearest = self._vectors.nearest(vectors, self._retrieval.mined)
        losses = []
        for vector, target, mined in zip(vectors, targets, nearest, strict=True):
            rows = [*(self._vectors.rows[video] for video in [target.positive, *target.negatives]), *mined]
            videos = self._vectors.matrix[list(dict.fromkeys(rows))].to(vector)  # the right one first, each once
            losses.append(retrieval_loss(vector, videos[0], videos[1:], self._retrieval.temperature))
        return torch.stack(losses)


def load_vectors(folder: DatasetFolder, split: str) -> VideoVectors:
    """Return the corpus vectors for the retrieval loss."""
    matrix = torch.from_numpy(np.load(folder.video_embeddings(split), allow_pickle=False))
    rows = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    return VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)


def _noise(action: LatentActions) -> torch.Tensor:
    """Return the noise that the engine added to the latents, in units of sigma, float32 [N, R]."""
    depth, width = action.values.shape
    return torch.stack([latent_noise(action.seed, step, width) for step in range(depth)])
