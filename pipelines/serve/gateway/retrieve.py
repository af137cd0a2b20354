"""`POST /retrieve` as published (method.md §5), with vectors, latents and exclusions added.

An answer is whole or a refusal with a status of its own: 422 for a request that does not fit the corpus, 503 for a
search that got no answer.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.serve.gateway.answers import WITH_BODY, errors
from pipelines.serve.gateway.faults import ApiError, reason
from pipelines.serve.gateway.gateway import Admitted, Chosen
from pipelines.serve.gateway.schema import QUERY
from vsr1.retrieval.request import RetrievalError, SearchRequest, SearchResult, SearchTimeoutError

NOT_WITHIN = -1  # rank of a video below `rank_k`
router = APIRouter()
_numbers = itertools.count(1)


class RetrieveRequest(BaseModel):
    """`queries` or `vectors`; every list that goes with them has one entry a query."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [{"queries": [QUERY], "topk": 3}]}
    )

    queries: list[str] | None = None
    vectors: list[list[float]] | None = Field(None, description="query vectors instead of texts; only directions count")
    latents: list[list[list[float]] | None] | None = Field(
        None, description="soft tokens of refined queries, as wide as the embedder, for each query a list or null"
    )
    topk: int = Field(1, ge=1)
    rank_for_ids: list[str] | None = Field(None, description="videos whose rank is wanted")
    rank_k: int | None = Field(None, ge=1, description="a rank beyond this is given as -1")
    exclude_ids: list[list[str]] | None = Field(None, description="videos that are not to be found")
    index_version: str | None = None
    partial: bool = False

    @model_validator(mode="after")
    def _lists_agree(self) -> RetrieveRequest:
        if (self.queries is None) == (self.vectors is None):
            raise ValueError("give either queries or vectors")
        if self.latents is not None and self.queries is None:
            raise ValueError("latents refine queries; with vectors there is nothing to refine")
        for name in ("latents", "rank_for_ids", "exclude_ids"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != self.count:
                raise ValueError(f"{name} has {len(entries)} entries for {self.count} queries")
        for i, rows in enumerate(self.latents or []):
            if rows is not None and len({len(row) for row in rows}) != 1:
                raise ValueError(f"latents of query {i} are not rows of one width")
        return self

    @property
    def count(self) -> int:
        """Number of queries."""
        return len(self.queries if self.queries is not None else self.vectors or [])

    def searches(self) -> list[SearchRequest]:
        """Return one search a query."""
        return [self._search(i) for i in range(self.count)]

    def _search(self, i: int) -> SearchRequest:
        def entry(values: list[Any] | None) -> Any:
            return None if values is None else values[i]

        latents, vector = entry(self.latents), entry(self.vectors)
        return SearchRequest(
            query=entry(self.queries),
            soft_tokens=None if latents is None else np.array(latents, np.float32),
            vector=None if vector is None else np.array(vector, np.float32),
            k=self.topk,
            exclude=entry(self.exclude_ids) or [],
            rank_of=entry(self.rank_for_ids),
            index_version=self.index_version,
            partial=self.partial,
        )


class RetrieveResponse(BaseModel):
    """`ids` and `scores` for each query, best first; `missing` names shards that a partial answer leaves out."""

    ids: list[list[str]]
    scores: list[list[float]]
    rid: int
    ranks: list[int | None] | None = None
    rank_for_ids_echo: list[str] | None = None
    index_version: str | None = None
    missing: list[str]


@router.post(
    "/retrieve",
    response_model_exclude_none=True,
    responses=errors("unknown_corpus", "search_timeout", *WITH_BODY),
)
async def retrieve(body: RetrieveRequest, gateway: Admitted, corpus: Chosen) -> RetrieveResponse:
    """Return the videos nearest to each query, without an agent that looks at them."""
    try:
        results = await gateway.library.retrieve.remote(corpus, body.searches())
    except RetrievalError as error:
        code = "search_timeout" if isinstance(error, SearchTimeoutError) else "invalid_request"
        raise ApiError(code, reason(error)) from error
    return RetrieveResponse(
        ids=[[video_id for video_id, _ in result.retrieved] for result in results],
        scores=[[score for _, score in result.retrieved] for result in results],
        rid=next(_numbers),
        ranks=[_rank(result, body.rank_k) for result in results] if body.rank_for_ids else None,
        rank_for_ids_echo=body.rank_for_ids,
        index_version=results[0].index_version if results else None,
        missing=sorted({name for result in results for name in result.missing}),
    )


def _rank(result: SearchResult, within: int | None) -> int | None:
    if result.rank_of is None or within is None or result.rank_of <= within:
        return result.rank_of
    return NOT_WITHIN
