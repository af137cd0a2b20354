"""Merge what the shards found: exact, because every shard gives its own best k in the order of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsr1.retrieval.index import ShardHits


def merge_hits(parts: Sequence[ShardHits], k: int) -> list[tuple[int, float]]:
    """The best k (row, score) of all shards by (-score, row), fewer only if the shards hold fewer."""
    rows = np.concatenate([np.empty(0, np.int64), *[part.rows for part in parts]])
    scores = np.concatenate([np.empty(0, np.float32), *[part.scores for part in parts]])
    order = np.lexsort((rows, -scores))[:k]
    return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))


def merge_rank(counts: Sequence[int]) -> int:
    """Rank of a video, 1 is best, from how many come before it in each shard."""
    return 1 + sum(counts)
