"""Turns and trajectories of the search environment in few words, for tests of what is made of them."""

from typing import Any

import numpy as np

from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import FinishReason, Trajectory, Turn
from vsr1.search.record import Ranking, SearchTask, SearchTrajectory, SearchTurn, Span, Verdict
from vsr1.video.clips import ClipReference


def search_turn(
    number: int,
    video_id: str,
    verdict: Verdict = "unknown",
    span: Span | None = None,
    *,
    text: str = "",
    prompt: list[int] | None = None,
    tokens: list[int] | int = 3,
    logprobs: list[float] | None = None,
    finish_reason: FinishReason = "stop",
    latents: np.ndarray | None = None,
    retrieved: Ranking | None = None,
    ranks: tuple[int, int | None] = (1, None),
    clip_hash: str = "",
    seed: int = 0,
    weight_version: int = 0,
    seconds: float = 0.1,
    **record: Any,
) -> Turn[SearchTurn]:
    """Return a turn; `tokens` are the reply's ids, or how many; other words are fields of the record."""
    ids = [2] * tokens if isinstance(tokens, int) else tokens
    ranking = [(video_id, 0.5)] if retrieved is None else retrieved
    refined = latents is not None or record.get("rewrite") is not None
    return Turn(
        number=number,
        clips=[ClipReference(video_id, clip_hash)],
        prompt_token_ids=prompt or [1],
        response_token_ids=ids,
        response_logprobs=[-0.1] * len(ids) if logprobs is None else logprobs,
        text=text,
        finish_reason=finish_reason,
        seed=seed,
        weight_version=weight_version,
        seconds=seconds,
        record=SearchTurn(
            video_id, verdict, span, ranking, *ranks, **{"index_version": "i", "refined": refined} | record
        ),
        latents={} if latents is None else {"query": latents},
    )


def search_trajectory(
    query_id: str,
    turns: list[Turn[SearchTurn]],
    end_reason: str = "matched",
    *,
    prompt: str | None = None,
    sample: int = 0,
    query: str = "a query",
    gt: tuple[str, Span, float] = ("v", (0.0, 1.0), 2.0),
    negatives: list[str] | None = None,
    **results: Any,
) -> SearchTrajectory:
    """Return a trajectory of a prompt, by default of its query; other words are its terms and rewards."""
    task = SearchTask(SampleId(prompt or query_id, sample), query_id, query, *gt, negatives or [])
    return Trajectory(task, turns, end_reason, **results)
