"""What the frozen engine finds for each query: the ranking that pools, negatives and GRPO records are cut from.

Exact, over the whole corpus; ties go to the smaller video id, as in the retrieval service.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.data.manifest import Manifest
from pipelines.data.vectors import Vectors

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Hit:
    """A video in a query's ranking; `rank` starts at 1."""

    video_id: str
    score: float
    rank: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """One query: its best videos, best first, and the right one wherever it stands.

    Held as rows int32 [k] of `ids` and scores float32 [k], because a corpus has many queries.
    """

    ids: list[str]
    rows: np.ndarray
    scores: np.ndarray
    truth: Hit

    @property
    def best(self) -> list[Hit]:
        found = zip(self.rows, self.scores, strict=True)
        return [Hit(self.ids[row], float(score), rank) for rank, (row, score) in enumerate(found, start=1)]

    @property
    def top1(self) -> Hit:
        return Hit(self.ids[self.rows[0]], float(self.scores[0]), 1)

    def wrong(self, count: int) -> list[Hit]:
        """The `count` nearest wrong videos, or all wrong videos if there are fewer."""
        return [hit for hit in self.best if hit.video_id != self.truth.video_id][:count]


def rank_videos(manifest: Manifest, vectors: Vectors, depth: int) -> list[Ranking]:
    """Rankings in annotation order, each `depth` wrong videos deep at least."""
    ids = list(manifest.videos)
    rows = {video_id: row for row, video_id in enumerate(ids)}
    rankings: list[Ranking] = []
    for first in range(0, len(manifest.annotations), QUERIES_AT_ONCE):
        scores_QV = vectors.queries[first : first + QUERIES_AT_ONCE] @ vectors.videos.T
        order_QV = np.argsort(-scores_QV, axis=1, kind="stable").astype(np.int32)
        asked = manifest.annotations[first : first + QUERIES_AT_ONCE]
        for annotation, scores, order in zip(asked, scores_QV, order_QV, strict=True):
            truth = rows[annotation.video]
            place = int(np.flatnonzero(order == truth)[0])
            best = order[: depth + 1].copy()  # a slice would hold the whole row
            rankings.append(Ranking(ids, best, scores[best], Hit(annotation.video, float(scores[truth]), place + 1)))
    return rankings


def recall_at_1(rankings: list[Ranking]) -> float:
    """Share of queries whose best video is the right one."""
    return sum(ranking.truth.rank == 1 for ranking in rankings) / len(rankings)
