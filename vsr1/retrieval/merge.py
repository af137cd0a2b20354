"""Merge what the shards found: exact, because every shard gives its own best k in the order of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsr1.retrieval.index import Ragged, ShardHits


def merge_hits(parts: Sequence[ShardHits], k: np.ndarray) -> tuple[Ragged, np.ndarray]:
    """For each query the best k of all shards by (-score, row), fewer only if the shards hold fewer.

    Args:
        parts: of at least one shard, all for the same queries. k: [q] int64.

    Returns:
        rows, int64, and beside their values the scores, float32.
    """
    owners = np.concatenate([part.rows.owners for part in parts])
    rows = np.concatenate([part.rows.values for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((rows, -scores, owners))
    counts = np.bincount(owners, minlength=len(k))
    starts = np.cumsum(counts) - counts
    is_kept = np.arange(len(order)) - starts[owners[order]] < k[owners[order]]
    order = order[is_kept]
    return Ragged(rows[order], np.cumsum(np.minimum(counts, k))), scores[order]


def merge_rank(counts: Sequence[int]) -> int:
    """Rank of a video, 1 is best, from how many come before it in each shard."""
    return 1 + sum(counts)
