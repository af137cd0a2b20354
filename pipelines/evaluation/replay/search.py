"""The searches of a recorded episode: the environment plays it again with the recorded replies and clips.

The search is in this process: plain products of a query vector with every video, nothing batched, sharded or
approximate. Refined queries are made of the recorded latents, through the head of the weights that sampled them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines.evaluation.replay.differences import (
    Differs,
    NotChecked,
    same,
    same_numbers,
    same_rank,
    same_ranking,
    same_sequence,
)
from pipelines.evaluation.replay.sources import Sources
from pipelines.evaluation.replay.stages import Stages, Step
from vsr1.episode.trajectory import Turn
from vsr1.retrieval.corpus import Corpus
from vsr1.retrieval.plan import plan_search
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest, SearchResult
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.runs.trajectories import LoggedTrajectory
from vsr1.search.environment import SearchEnvironment, SearchSettings, seconds_shown
from vsr1.search.examples import turn_example
from vsr1.search.parse import Judgement, parse_reply
from vsr1.search.prompts import agent_prompt, turn_prompt
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.video.clips import Clip


class RecordedReply:
    """The reply of a recorded turn, as the environment takes it."""

    def __init__(self, turn: Turn[Any], soft_tokens: np.ndarray | None) -> None:
        self.prompt_token_ids, self.token_ids = turn.prompt_token_ids, turn.response_token_ids
        self.logprobs, self.text, self.finish_reason = turn.response_logprobs, turn.text, turn.finish_reason
        self.latents, self.soft_tokens = turn.latents.get("query"), soft_tokens
        self.seed, self.weight_version = turn.seed, turn.weight_version


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
            rank_of=None if plan.rank_row is None else 1 + int(np.flatnonzero(order == plan.rank_row)[0]),
            scores={video: by_id[video] for video in request.scores_of},
            index_version=catalogue.version,
            query_vector=vector,
        )


class SearchStages(Stages):
    """The checks of a run of searches."""

    def _clips(self, trajectory: SearchTrajectory) -> str:
        for turn in trajectory.turns:
            [clip] = turn.clips
            what = f"turn {turn.number}, content of clip {clip.video_id}"
            same(what, clip.content_hash, self._sources.content_hash(clip.video_id))
        return f"{len(trajectory.turns)} clips"

    def _prompts(self, trajectory: SearchTrajectory) -> str:
        prompt = turn_prompt(trajectory.task.query, agent_prompt(self._sources.agent))
        for turn in trajectory.turns:
            tokens = self._sources.processor.prompt_ids(prompt, self._sources.clip(turn.clips[0]))
            same_sequence(f"turn {turn.number}, prompt tokens", turn.prompt_token_ids, tokens)
        return f"{sum(len(turn.prompt_token_ids) for turn in trajectory.turns)} tokens"

    def _replies(self, trajectory: SearchTrajectory) -> str:
        for turn in trajectory.turns:
            where, record = f"turn {turn.number}", turn.record
            self._same_text(turn)
            reply = parse_reply(turn.text, seconds_shown(self._sources.clip(turn.clips[0]), trajectory.task))
            same(f"{where}, verdict", record.verdict, reply.verdict)
            same(f"{where}, span", record.span, reply.span)
            if self._sources.agent.refinement == "text":
                same(f"{where}, rewrite", record.rewrite, None if record.verdict == "matched" else reply.rewrite)
        return f"{sum(len(turn.response_token_ids) for turn in trajectory.turns)} tokens"

    def _plays(self) -> dict[str, Callable[[SearchTrajectory], str]]:
        return {"retrieval": lambda trajectory: check_searches(self._sources, trajectory, self._tolerances.score)}

    def _turn_example(self, trajectory: SearchTrajectory, place: int, credit: Credit) -> Example:
        return turn_example(trajectory, place, credit, self._sources.config.grpo, self._sources.agent)

    def _loss(self, logged: LoggedTrajectory, step: Step) -> str:
        self._credits(logged)
        task = logged.trajectory.task
        if not task.negatives and self._sources.task(task.query_id).negatives:
            raise NotChecked("the file, of version 0.1, does not record the negatives that the loss compares with")
        return super()._loss(logged, step)


def check_searches(sources: Sources, trajectory: SearchTrajectory, tolerance: float) -> str:
    """Check rankings, ranks and scores of all searches, the video that each led to, and how the episode ended."""
    turns = trajectory.turns
    search = LocalSearch(sources.corpus(turns[0].record.index_version), sources.embedder)
    unknown = ""
    try:
        replies = [RecordedReply(turn, _soft_tokens(sources, turn)) for turn in turns]
    except NotChecked as reason:  # the first search needs no weights
        unknown, replies = str(reason), [RecordedReply(turns[0], None)]
    result, shown = asyncio.run(_play(sources, trajectory, search, replies))
    distances = [0.0]
    for number, (old, new) in enumerate(zip(turns, result.turns, strict=False)):
        where, scores, video = f"turn {old.number}", search.scores[number], old.record.video_id
        ranking = same_ranking(f"{where}, retrieved", old.record.retrieved, new.record.retrieved, scores, tolerance)
        distances += ranking.tolist()
        if video not in scores or abs(scores[video] - scores[shown[number]]) > tolerance:
            same(f"{where}, video shown", video, shown[number])
        same_search = partial(_same_search, old, new, trajectory.task.gt_video, tolerance)
        distances += same_search("before", scores)
        if not unknown:
            distances += same_search("after", search.scores[number + 1] if new.record.gt_rank_after else {})
    if unknown:
        raise NotChecked(f"the first search agrees; of the others {unknown}")
    same("turns", len(turns), len(result.turns))
    same("end of the episode", trajectory.end_reason, result.end_reason)
    return f"{len(search.scores)} searches, scores differ by {max(distances):.1e} at most"


def _same_search(
    old: Turn[SearchTurn], new: Turn[SearchTurn], right: str, tolerance: float, when: str, scores: dict[str, float]
) -> list[float]:
    """Compare rank and scores before or after a turn's refinement; return the distances of the scores."""
    where = f"turn {old.number}, {when} the refinement"
    ranks, rights, wrongs = (
        (getattr(old.record, f"{name}_{when}"), getattr(new.record, f"{name}_{when}"))
        for name in ("gt_rank", "gt_score", "negative_scores")
    )
    same(f"{where}: searched", ranks[0] is not None, ranks[1] is not None)
    if ranks[0] is None:
        return []
    distances = same_numbers(f"{where}, score of the right video", [rights[0]], [rights[1]], tolerance).tolist()
    distances += same_numbers(f"{where}, scores of the negatives", wrongs[0], wrongs[1], tolerance).tolist()
    same_rank(f"{where}, rank of the right video", ranks[0], scores, right, tolerance)
    return distances


async def _play(
    sources: Sources, trajectory: SearchTrajectory, search: LocalSearch, replies: list[RecordedReply]
) -> tuple[SearchTrajectory, list[str]]:
    """Return the episode again, and the video that each search would have shown."""
    shown: list[str] = []

    async def load_clip(video: str) -> Clip:
        if len(shown) == len(trajectory.turns):
            raise Differs(f"the episode goes on after its last turn, {len(shown)}")
        shown.append(video)
        return sources.shown(trajectory.turns[len(shown) - 1].record.video_id)

    def judge(text: str, seconds: float) -> Judgement:
        record = trajectory.turns[len(shown) - 1].record
        return Judgement(None, record.verdict, record.span, record.rewrite)

    settings, task = SearchSettings.of(sources.agent, sources.top_k), sources.task(sources.query_of(trajectory))
    environment = SearchEnvironment(task, settings, search, load_clip, judge=judge)
    try:
        observation = await environment.reset()
        for reply in replies:
            if observation is not None:
                observation = await environment.step(reply)
    except RetrievalError as error:
        raise Differs(str(error)) from error
    return environment.trajectory(), shown


def _soft_tokens(sources: Sources, turn: Turn[SearchTurn]) -> np.ndarray | None:
    """Return what the recorded latents make of the query [N, E], under the weights that sampled them."""
    if "query" not in turn.latents:
        return None
    latents = np.array(turn.latents["query"], np.float32)
    with torch.no_grad():
        return sources.loss(turn.weight_version).policy.soft_tokens(torch.from_numpy(latents)).float().numpy()
