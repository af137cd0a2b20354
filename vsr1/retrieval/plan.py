"""A request turned into rows of the corpus: all that can be wrong with it is found here, before it joins a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.request import RetrievalError, SearchRequest, vector_problem


@dataclass(frozen=True)
class SearchPlan:
    """A request that fits the corpus."""

    request: SearchRequest
    catalogue: Catalogue
    exclude: np.ndarray  # int64 rows, sorted, no repeats
    probes: np.ndarray  # int64 rows of `scores_of` and `rank_of`, sorted, no repeats
    rank_row: int | None
    vector: np.ndarray | None  # [dim] float32, unit length; None for a text that is to be embedded


def plan_search(request: SearchRequest, catalogue: Catalogue) -> SearchPlan:
    """Turn ids into rows and check what the request brings.

    Raises:
        RetrievalError: unknown ids, or soft tokens or a vector that do not fit the corpus.
    """
    exclude = _sorted(catalogue.rows(request.exclude, "exclude"))
    probes = catalogue.rows(request.scores_of, "scores_of")
    rank_row = None
    if request.rank_of is not None:
        [rank_row] = catalogue.rows([request.rank_of], "rank_of").tolist()
        probes = np.append(probes, rank_row)
    soft = request.soft_tokens
    if soft is not None and (soft.ndim != 2 or soft.shape[1] != catalogue.dim or not np.isfinite(soft).all()):
        raise RetrievalError(
            f"soft tokens of query {request.query!r} must be finite numbers [N, {catalogue.dim}], got {soft.shape}"
        )
    vector = None
    if request.vector is not None:
        if problem := vector_problem(request.vector, catalogue.dim):
            raise RetrievalError(f"the query vector {problem}")
        wide = request.vector.astype(np.float64)
        vector = (wide / math.sqrt(wide @ wide)).astype(np.float32)
    return SearchPlan(request, catalogue, exclude, _sorted(probes), rank_row, vector)


def _sorted(rows: np.ndarray) -> np.ndarray:
    return np.unique(rows) if len(rows) > 1 else rows
