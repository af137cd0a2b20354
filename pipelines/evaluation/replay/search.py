"""The searches of a recorded episode: the environment plays it again with the recorded replies and clips.

The search is in this process: plain products of a query vector with every video, nothing batched, sharded or
approximate. Refined queries are made of the recorded latents, through the head of the weights that sampled them.
"""

from __future__ import annotations

import asyncio

import numpy as np
import torch

from pipelines.evaluation.replay.differences import Differs, NotChecked, same, same_numbers, same_rank, same_ranking
from pipelines.evaluation.replay.sources import Sources
from vsr1.engine.engine import Reply
from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.retrieval.corpus import Corpus
from vsr1.retrieval.plan import plan_search
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest, SearchResult
from vsr1.search.environment import SearchEnvironment, SearchSettings
from vsr1.video.clips import Clip


class LocalSearch:
    """A `Search` of the environment, which remembers the scores of all videos, one dict a search in order."""

    def __init__(self, corpus: Corpus, embedder: QueryEmbedder) -> None:
        self._corpus, self._embedder = corpus, embedder
        self.scores: list[dict[str, float]] = []

    async def __call__(self, request: SearchRequest) -> SearchResult:
        """Answer a request by text.

        Raises:
            RetrievalError: ids that are not in the corpus.
        """
        catalogue = self._corpus.catalogue
        plan = plan_search(request, catalogue)
        [vector] = self._embedder.embed_queries([request.query or ""], [request.soft_tokens])
        scores = self._corpus.vectors @ vector
        by_id = dict(zip(catalogue.video_ids, scores.tolist(), strict=True))
        self.scores.append(by_id)
        order = np.argsort(-scores, kind="stable")
        best = order[~np.isin(order, plan.exclude)][: request.k]
        return SearchResult(
            retrieved=[(catalogue.video_ids[row], float(scores[row])) for row in best],
            exhausted=not len(best),
            rank_of=None if plan.rank_row is None else 1 + int(np.flatnonzero(order == plan.rank_row)[0]),
            scores={video: by_id[video] for video in request.scores_of},
            index_version=catalogue.version,
            query_vector=vector,
        )


def check_searches(sources: Sources, one: Trajectory, tolerance: float) -> str:
    """Rankings, ranks and scores of all searches, the video that each led to, and how the episode ended."""
    search = LocalSearch(sources.corpus(one.segments[0].index_version), sources.embedder)
    unknown = ""
    try:
        replies = [_reply(sources, segment) for segment in one.segments]
    except NotChecked as reason:  # the first search needs no weights
        unknown, replies = str(reason), [_reply(sources, one.segments[0], with_latents=False)]
    again, shown = asyncio.run(_play(sources, one, search, replies))
    apart = [0.0]
    for number, (old, new) in enumerate(zip(one.segments, again.segments, strict=False)):
        turn, scores = f"turn {old.turn}", search.scores[number]
        apart += same_ranking(f"{turn}, retrieved", old.retrieved, new.retrieved, scores, tolerance).tolist()
        if old.video_id not in scores or abs(scores[old.video_id] - scores[shown[number]]) > tolerance:
            same(f"{turn}, video shown", old.video_id, shown[number])
        apart += _same_search(old, new, "before", scores, one.gt_video, tolerance)
        if not unknown:
            after = search.scores[number + 1] if new.gt_rank_after is not None else {}
            apart += _same_search(old, new, "after", after, one.gt_video, tolerance)
    if unknown:
        raise NotChecked(f"the first search agrees; of the others {unknown}")
    same("turns", len(one.segments), len(again.segments))
    same("end of the episode", one.end_reason, again.end_reason)
    return f"{len(search.scores)} searches, scores differ by {max(apart):.1e} at most"


def _same_search(
    old: Segment, new: Segment, when: str, scores: dict[str, float], right: str, tolerance: float
) -> list[float]:
    """Rank and scores before or after a turn's refinement; distances of the scores."""
    where = f"turn {old.turn}, {when} the refinement"
    ranks, rights, wrongs = (
        (getattr(old, f"{name}_{when}"), getattr(new, f"{name}_{when}"))
        for name in ("gt_rank", "gt_score", "negative_scores")
    )
    same(f"{where}: searched", ranks[0] is not None, ranks[1] is not None)
    if ranks[0] is None:
        return []
    apart = same_numbers(f"{where}, score of the right video", [rights[0]], [rights[1]], tolerance).tolist()
    apart += same_numbers(f"{where}, scores of the negatives", wrongs[0], wrongs[1], tolerance).tolist()
    same_rank(f"{where}, rank of the right video", ranks[0], scores, right, tolerance)
    return apart


async def _play(
    sources: Sources, one: Trajectory, search: LocalSearch, replies: list[Reply]
) -> tuple[Trajectory, list[str]]:
    """The episode again, and the video that each search would have shown."""
    shown: list[str] = []

    async def load_clip(video: str) -> Clip:
        if len(shown) == len(one.segments):
            raise Differs(f"the episode goes on after its last turn, {len(shown)}")
        shown.append(video)
        return sources.clip(one.segments[len(shown) - 1])

    settings = SearchSettings.of(sources.agent, sources.top_k)
    environment = SearchEnvironment(sources.task(one.query_id), settings, search, load_clip)
    try:
        observation = await environment.reset()
        for reply in replies:
            if observation is not None:
                observation = await environment.step(reply)
    except RetrievalError as error:
        raise Differs(str(error)) from error
    return environment.trajectory(), shown


def _reply(sources: Sources, segment: Segment, *, with_latents: bool = True) -> Reply:
    """The recorded reply, with the soft tokens that its latents make."""
    soft = None
    if segment.latents is not None and with_latents:
        policy = sources.loss(segment.weight_version).policy
        with torch.no_grad():
            soft = policy.soft_tokens(torch.from_numpy(segment.latents)).float().numpy()
    return Reply(
        prompt_token_ids=segment.prompt_token_ids,
        token_ids=segment.response_token_ids,
        logprobs=segment.response_logprobs,
        text=segment.text,
        finish_reason=segment.finish_reason,
        latents=segment.latents,
        soft_tokens=soft,
        noise=segment.noise,
        weight_version=segment.weight_version,
    )
