"""The loss of examples under a policy: what both stages minimise, on whatever process holds the weights.

Everything is a share of the whole batch, so the losses of its parts add up however it is cut. Stage 1 takes token
cross-entropy, Stage 2 a policy loss on the engine's own tokens and, where latents are actions, on its own latents; both
add the retrieval loss, whose gradient runs through the frozen embedder into the latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder
from vsr1.model.forward import ForwardState, Row, prefill, roll_latents, token_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor, ProcessedClip
from vsr1.model.vision import VisionFeatures, blank_clip, encode_clips
from vsr1.rl.batch import BatchTotals, Example
from vsr1.rl.losses import retrieval_loss
from vsr1.rl.objective import Counted, TokenBatch, latent_objective, token_objective
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, SftConfig
from vsr1.video.clips import Clip


@dataclass
class VideoVectors:
    """Corpus vectors of a split: unit rows [videos, E] and the row of each video id."""

    matrix: torch.Tensor
    rows: dict[str, int]

    def nearest(self, queries: torch.Tensor, count: int) -> list[list[int]]:
        """Rows of the `count` videos of the whole split that are most similar to each of `queries` [n, E]."""
        if not count:
            return [[] for _ in queries]
        scores = queries.detach().to(self.matrix) @ self.matrix.T
        found: list[list[int]] = scores.topk(min(count, len(self.matrix))).indices.tolist()
        return found


class ExampleLoss:
    """The loss of a stage under `policy`; `reference` is what a KL term compares with."""

    def __init__(
        self,
        stage: SftConfig | GrpoConfig,
        agent: AgentConfig,
        policy: VideoSearchPolicy,
        reference: VideoSearchPolicy | None,
        embedder: Embedder,
        vectors: VideoVectors,
        processor: ClipProcessor,
        *,
        temperature: float = 1.0,
    ) -> None:
        self.policy, self.embedder = policy, embedder
        self._stage, self._retrieval, self._agent = stage, stage.retrieval_loss, agent
        self._reference, self._vectors, self._processor = reference, vectors, processor
        self._end_token = int(processor.tokenizer.eos_token_id)
        self._temperature = temperature

    def __call__(self, examples: list[Example], totals: BatchTotals) -> tuple[torch.Tensor, Counted]:
        """The share of the whole batch's loss that these examples have, with gradient, and what to log about it."""
        rows, features, state = self._prefill(examples)
        logprobs, entropy = token_logprobs(self.policy, state, rows, self._temperature)
        if isinstance(self._stage, GrpoConfig):
            total, counted = self._policy_loss(examples, rows, features, logprobs, totals)
        else:
            end = self.policy.lm_head(state.after_norm[:, -1]).float().log_softmax(-1)[:, self._end_token]
            total = -(logprobs.sum() + end.sum()) / totals.tokens
            counted = {"token_loss": -float(logprobs.detach().sum()) / totals.tokens}
        counted["entropy"] = float(entropy.detach().sum()) / totals.tokens
        for part, values in self._latent_losses(examples, state, totals):
            total = total + part
            counted |= values
        counted["loss"] = float(total.detach())
        return total, counted

    def logprobs(self, examples: list[Example]) -> torch.Tensor:
        """Log-probs of the replies of one pass, float32 [tokens of all], one example after another."""
        rows, _, state = self._prefill(examples)
        return token_logprobs(self.policy, state, rows, self._temperature)[0]

    def _policy_loss(
        self,
        examples: list[Example],
        rows: list[Row],
        features: list[VisionFeatures],
        logprobs: torch.Tensor,
        totals: BatchTotals,
    ) -> tuple[torch.Tensor, Counted]:
        assert isinstance(self._stage, GrpoConfig)
        lengths = [len(e.response_ids) for e in examples]
        advantages = torch.tensor([e.advantage for e in examples]).repeat_interleave(torch.tensor(lengths))
        behaviour = torch.tensor([p for e in examples for p in e.behaviour_logprobs or []])
        reference = None
        if self._reference is not None:
            with torch.no_grad():  # the vision tower is frozen in this stage, so its features are the reference's too
                state = prefill(self._reference.model, rows, features, keep_cache=False)
                reference, _ = token_logprobs(self._reference, state, rows, self._temperature)
        batch = TokenBatch(logprobs, behaviour.to(logprobs), reference, advantages.to(logprobs), lengths)
        return token_objective(batch, self._stage.objective, totals, self._agent.max_new_tokens)

    def _latent_losses(
        self, examples: list[Example], state: ForwardState, totals: BatchTotals
    ) -> Iterator[tuple[torch.Tensor, Counted]]:
        """Losses that reach the heads. Every row of the pass is rolled, so that all ranks touch the same weights."""
        depth, device = self._agent.depth, state.after_norm.device
        actions = self._stage.latents if isinstance(self._stage, GrpoConfig) else None
        noise = None
        if depth and actions and actions.sigma:
            shape = (len(examples), depth, self.policy.config.refine_dim)
            sampled = [i for i, e in enumerate(examples) if e.noise is not None]
            given, noise = torch.zeros(shape), torch.zeros(shape)
            for i in sampled:
                given[i], noise[i] = torch.tensor(examples[i].latents), torch.tensor(examples[i].noise)
            given, noise = given.to(device), noise.to(device)
        if noise is not None and actions and actions.weight:
            means = roll_latents(self.policy, state, depth, given=given)
            advantages = torch.tensor([e.latent_advantage for e in examples], device=device)
            if sampled:
                yield latent_objective(
                    given[sampled], means[sampled], noise[sampled], advantages[sampled], actions, totals
                )
            else:
                yield 0 * means.sum(), {}
        if depth and self._retrieval.weight > 0:
            draws = actions.sigma * noise if actions and noise is not None else None
            latents = roll_latents(self.policy, state, depth, draws)
            wanted = [i for i, example in enumerate(examples) if example.refined and example.negatives]
            if not wanted:
                nothing = {"retrieval_loss": 0.0, "latents/norm": 0.0} if totals.refined else {}  # as on other ranks
                yield 0 * self.policy.soft_tokens(latents).sum(), nothing
                return
            retrieval = self._retrieval_losses(examples, wanted, latents).sum() / totals.refined
            norms = latents.detach()[wanted].norm(dim=-1)
            yield (
                self._retrieval.weight * retrieval,
                {
                    "retrieval_loss": float(retrieval.detach()),
                    "latents/norm": float(norms.mean(dim=-1).sum()) / totals.refined,
                },
            )

    def _retrieval_losses(self, examples: list[Example], wanted: list[int], latents: torch.Tensor) -> torch.Tensor:
        before = [np.zeros((0, latents.shape[-1])) if (e := examples[i].earlier_latents) is None else e for i in wanted]
        counts = [len(part) + latents.shape[1] for part in before]
        joined = [torch.cat([torch.tensor(b).to(latents), latents[i]]) for b, i in zip(before, wanted, strict=True)]
        soft = self.policy.soft_tokens(torch.cat(joined)).split(counts)  # in one call, as on every other rank
        queries = self.embedder.query_vectors([examples[i].query for i in wanted], list(soft))
        nearest = self._vectors.nearest(queries, self._retrieval.mined)
        losses = []
        for query, i, mined in zip(queries, wanted, nearest, strict=True):
            named = [examples[i].positive, *examples[i].negatives[: self._stage.negatives]]
            rows = [*(self._vectors.rows[video] for video in named), *mined]
            vectors = self._vectors.matrix[list(dict.fromkeys(rows))].to(query)  # the right video first, each once
            losses.append(retrieval_loss(query, vectors[0], vectors[1:], self._retrieval.temperature))
        return torch.stack(losses)

    def _prefill(self, examples: list[Example]) -> tuple[list[Row], list[VisionFeatures], ForwardState]:
        """Rows of a pass, what they show, and their states.

        A pass without video runs the tower on a blank clip that no row shows: all ranks must call the same modules, in
        the same order forward and backward, or ZeRO-3 waits for ever.
        """
        clips, index = _distinct([example.clip for example in examples], self._processor, self.policy.device)
        rows = [
            Row(e.prompt_ids, e.response_ids, at, None if at is None else clips[at].grid)
            for e, at in zip(examples, index, strict=True)
        ]
        features = self._features(clips)
        return rows, features, prefill(self.policy.model, rows, features, keep_cache=True)

    def _features(self, clips: list[ProcessedClip]) -> list[VisionFeatures]:
        visual = self.policy.model.visual
        shown = [(clip.pixels, clip.grid) for clip in clips] or [blank_clip(visual)]
        with torch.set_grad_enabled(any(parameter.requires_grad for parameter in visual.parameters())):
            return encode_clips(visual, [p.to(self.policy.dtype) for p, _ in shown], [grid for _, grid in shown])


def load_vectors(folder: DatasetFolder, split: str) -> VideoVectors:
    """Corpus vectors for the retrieval loss."""
    matrix = torch.from_numpy(np.load(folder.video_embeddings(split), allow_pickle=False))
    rows = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    return VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)


def _distinct(
    clips: list[Clip | None], processor: ClipProcessor, device: torch.device
) -> tuple[list[ProcessedClip], list[int | None]]:
    """Process each clip of a batch once; returns them and which one each row shows, None without video."""
    order: dict[str, int] = {}
    processed: list[ProcessedClip] = []
    for clip in clips:
        if clip is not None and clip.content_hash not in order:
            order[clip.content_hash] = len(processed)
            processed.append(processor.process(clip, device))
    return processed, [None if clip is None else order[clip.content_hash] for clip in clips]
