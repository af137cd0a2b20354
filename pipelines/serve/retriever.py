"""The search over HTTP: `POST /retrieve` as published (method.md §5), with vectors, latents and exclusions added.

An answer is whole or an error with a status of its own: 422 for a request that does not fit, 503 for a search that got
no answer.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from actors.retrieval import RetrievalService
from pipelines.serve.running import deploy, serve_until_interrupted
from pipelines.stage.workers import resources
from vsr1.config import Config
from vsr1.retrieval.request import RetrievalError, SearchRequest, SearchResult, SearchTimeoutError

NOT_WITHIN = -1  # rank of a video below `rank_k`


class RetrieveRequest(BaseModel):
    """`queries` or `vectors`; every list that goes with them has one entry a query."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

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
            given = getattr(self, name)
            if given is not None and len(given) != self.count:
                raise ValueError(f"{name} has {len(given)} entries for {self.count} queries")
        return self

    @property
    def count(self) -> int:
        return len(self.queries if self.queries is not None else self.vectors or [])

    def searches(self) -> list[SearchRequest]:
        """One search a query.

        Raises:
            RetrievalError: latents that are not a table.
        """
        return [
            SearchRequest(
                query=self.queries[i] if self.queries is not None else None,
                soft_tokens=_table(self.latents[i], i) if self.latents is not None else None,
                vector=np.array(self.vectors[i], np.float32) if self.vectors is not None else None,
                k=self.topk,
                exclude=self.exclude_ids[i] if self.exclude_ids is not None else [],
                rank_of=self.rank_for_ids[i] if self.rank_for_ids is not None else None,
                index_version=self.index_version,
                partial=self.partial,
            )
            for i in range(self.count)
        ]


class RetrieveResponse(BaseModel):
    """`ids` and `scores` for each query, best first; `missing` names shards that a partial answer leaves out."""

    ids: list[list[str]]
    scores: list[list[float]]
    rid: int
    ranks: list[int | None] | None = None
    rank_for_ids_echo: list[str] | None = None
    index_version: str | None
    missing: list[str]

    @classmethod
    def of(cls, request: RetrieveRequest, results: list[SearchResult], rid: int) -> RetrieveResponse:
        return cls(
            ids=[[video_id for video_id, _ in result.retrieved] for result in results],
            scores=[[score for _, score in result.retrieved] for result in results],
            rid=rid,
            ranks=[_rank(result, request.rank_k) for result in results] if request.rank_for_ids else None,
            rank_for_ids_echo=request.rank_for_ids,
            index_version=results[0].index_version if results else None,
            missing=sorted({name for result in results for name in result.missing}),
        )


app = FastAPI(title="vsr1 retriever")


@serve.deployment(max_ongoing_requests=64)
@serve.ingress(app)
class Retriever:
    """One split behind HTTP; its retrieval service ends with it."""

    def __init__(self, config: Config, split: str) -> None:
        self._service = RetrievalService.options(**resources(config.cluster.retrieval)).remote(config, split)
        self._rids = itertools.count(1)

    async def check_health(self) -> None:
        await self._service.ready.remote()

    @app.post("/retrieve", response_model=RetrieveResponse, response_model_exclude_none=True)
    async def retrieve(self, request: RetrieveRequest) -> Any:
        try:
            results = await self._service.search_all.remote(request.searches())
        except RetrievalError as error:
            status = 503 if isinstance(error, SearchTimeoutError) else 422
            return JSONResponse({"error": str(getattr(error, "cause", error))}, status)
        return RetrieveResponse.of(request, results, next(self._rids))

    @app.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        return dict(await self._service.describe.remote())


def serve_retriever(config: Config, split: str, host: str, port: int) -> None:
    """Serve a split until interrupted; raises as `serve_until_interrupted`."""
    serve_until_interrupted(config, host, port, "/retrieve", lambda: start_retriever(config, split, host, port))


def start_retriever(config: Config, split: str, host: str, port: int) -> None:
    """Deploy on the Ray that runs, and wait until it answers."""
    deploy(Retriever.bind(config, split), "retriever", host, port)  # type: ignore[attr-defined]


def _table(rows: list[list[float]] | None, i: int) -> np.ndarray | None:
    if rows is None:
        return None
    if len({len(row) for row in rows}) != 1:
        raise RetrievalError(f"latents of query {i} are not rows of one width")
    return np.array(rows, np.float32)


def _rank(result: SearchResult, within: int | None) -> int | None:
    if result.rank_of is None or within is None or result.rank_of <= within:
        return result.rank_of
    return NOT_WITHIN
