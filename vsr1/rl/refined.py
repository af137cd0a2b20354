"""Refined queries against the videos of the corpus: the retrieval loss of latents, and what the search makes of them.

The loss has its gradient through an embedder that is known. The search may have another one, which is only asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from vsr1.formats.arrays import read_array
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.attention import LayerOptions
from vsr1.model.embedder import Embedder
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.upload import upload
from vsr1.rl.batch import RetrievalTarget
from vsr1.rl.branches import log_ranks
from vsr1.rl.losses import retrieval_loss
from vsr1.settings.training import RetrievalLossConfig


@dataclass
class VideoVectors:
    """Corpus vectors of a split on the host: unit rows [videos, E] and the row of each video id."""

    matrix: torch.Tensor
    rows: dict[str, int]

    def nearest(self, queries: torch.Tensor, count: int) -> list[list[int]]:
        """Return the rows of the `count` videos of the split that are most similar to each of `queries` [n, E]."""
        if not count:
            return [[] for _ in queries]
        scores = queries.detach().to(self.matrix) @ self.matrix.T
        rows: list[list[int]] = scores.topk(min(count, len(self.matrix))).indices.tolist()
        return rows


def load_vectors(folder: DatasetFolder, split: str) -> VideoVectors:
    """Return the corpus vectors for the retrieval loss."""
    matrix = torch.from_numpy(read_array(folder.video_embeddings(split)))
    rows = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    return VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)


class RefinedQueries:
    """Scores the latents of a policy.

    Args:
        known: embedder and vectors of the loss.
        searched: those of the search.
    """

    def __init__(
        self,
        policy: VideoSearchPolicy,
        known: tuple[Embedder, VideoVectors],
        searched: tuple[Embedder, VideoVectors],
        settings: RetrievalLossConfig,
        options: LayerOptions,
    ) -> None:
        self._policy, self._known, self._searched = policy, known, searched
        self._settings, self._options = settings, options

    def losses(self, targets: list[RetrievalTarget], latents: torch.Tensor) -> torch.Tensor:
        """Return the losses [n] of queries refined by `latents` [n, N, R], each against its target."""
        embedder, known = self._known
        refined = []
        for target, own in zip(targets, latents, strict=True):
            earlier = target.earlier_latents
            refined.append(own if earlier is None else torch.cat([upload(earlier, own.device, own.dtype), own]))
        soft = self._policy.soft_tokens(torch.cat(refined)).split([len(one) for one in refined])  # the ranks' rule
        queries = [target.query for target in targets]
        vectors = embedder.query_vectors(queries, list(soft), self._options)
        nearest = known.nearest(vectors, self._settings.mined)
        rows = []  # of the right video and the wrong ones, each once
        for target, mined in zip(targets, nearest, strict=True):
            named = [known.rows[video] for video in [target.positive, *target.negatives]]
            rows.append(list(dict.fromkeys([*named, *mined])))
        width = max(map(len, rows))
        table = torch.tensor([[*own, *own[:1] * (width - len(own))] for own in rows])
        counts = upload([len(own) for own in rows], vectors.device)
        videos = upload(known.matrix[table], vectors.device, vectors.dtype)
        return retrieval_loss(vectors, videos, counts, self._settings.temperature)

    @torch.no_grad()
    def branch_rewards(
        self, targets: list[RetrievalTarget], shown: list[set[str]], branches: torch.Tensor
    ) -> torch.Tensor:
        """Return what the search gives for branches of refinements [n, M, N, R]: `log_ranks`, [n, M].

        Args:
            targets: of the refinements.
            shown: videos that each of them has just rejected, which it does not find again.
        """
        embedder, vectors = self._searched
        matrix, rewards = vectors.matrix.to(branches.device), []
        for target, rejected, own in zip(targets, shown, branches, strict=True):
            soft = self._policy.soft_tokens(own)
            if target.earlier_latents is not None:
                earlier = self._policy.soft_tokens(upload(target.earlier_latents, own.device, own.dtype))
                soft = torch.cat([earlier.expand(len(own), -1, -1), soft], dim=1)
            scores = embedder.query_vectors([target.query] * len(own), list(soft)).to(matrix) @ matrix.T
            scores[:, [vectors.rows[video] for video in rejected if video != target.positive]] = -torch.inf
            rewards.append(log_ranks(scores, torch.tensor(vectors.rows[target.positive], device=scores.device)))
        return torch.stack(rewards)
