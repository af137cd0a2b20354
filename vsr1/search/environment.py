"""The video search environment: retrieve, show, read the verdict, refine, retrieve again.

Each turn is a fresh prompt about one video (method.md §2.4). A rejected video is not shown again unless the settings
say so; ranks are always those of the whole corpus. An accepted video ends the search, and its query stays as it was
(method.md §2.4). What is returned is complete: a search that fails raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from vsr1.episode.environment import Observation, PolicyReply, turn_of
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.events import Judged, Observe, Refined, Retrieved, TurnStarted, unobserved
from vsr1.search.parse import ACCEPTS, Judgement, parse_reply
from vsr1.search.prompts import agent_prompt, turn_parts
from vsr1.search.record import EndReason, SearchTask, SearchTrajectory, SearchTurn
from vsr1.search.targets import negatives_of
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

Search = Callable[[SearchRequest], Awaitable[SearchResult]]
LoadClip = Callable[[str], Awaitable[Clip]]


@dataclass(frozen=True)
class SearchSettings:
    agent: AgentConfig
    system_prompt: str
    top_k: int  # videos listed by a search
    rank_by_depth: bool = False  # after a refinement, also search with its first 1, 2, ... latents

    @classmethod
    def of(cls, agent: AgentConfig, top_k: int, rank_by_depth: bool = False) -> SearchSettings:
        return cls(agent, agent_prompt(agent), top_k, rank_by_depth)


class SearchEnvironment:
    latents_unless = ACCEPTS

    def __init__(
        self,
        task: SearchTask,
        settings: SearchSettings,
        search: Search,
        load_clip: LoadClip,
        observe: Observe = unobserved,
        index_version: str | None = None,
        judge: Callable[[str, float], Judgement] = parse_reply,
    ) -> None:
        """
        Args:
            index_version: of the corpus, of an episode that goes on; None: the present one.
            judge: reads a reply about a video of so many seconds.
        """
        self._task, self._settings, self._agent = task, settings, settings.agent
        self._search, self._load_clip, self._observe = search, load_clip, observe
        self._rejected = list(task.exclude)
        self._soft: list[np.ndarray] = []  # of the turns so far, [N, E] each
        self._shown: list[str] = []
        self._judge = judge
        self._version = index_version  # the same from the first search to the last
        self._trajectory = SearchTrajectory(task)

    async def reset(self) -> Observation | None:
        self._result = await self._retrieve(SearchRequest(query=self._task.query))
        return await self._show(self._task.first_video)

    async def step(self, reply: PolicyReply) -> Observation | None:
        judgement = self._judge(reply.text, seconds_shown(self._clip, self._task))
        accepted = judgement.verdict == "matched"
        if self._agent.exclude_rejected and not accepted:
            self._rejected.append(self._clip.video_id)
        self._tell(judgement)
        rewrite = judgement.rewrite if self._agent.refinement == "text" and not accepted else None
        request = None if accepted else self._refined_request(reply, rewrite)
        after = None if request is None else await self._retrieve(request)
        if after is not None:
            self._observe(Refined(self.number, self._result.retrieved, after.retrieved))
        ranks = await self._ranks_by_depth(request, after) if request and after else None
        self._record(reply, judgement, rewrite, after, ranks)
        if accepted:
            return self._end("matched")
        if after is None:
            return self._end("no_refinement")
        if self._task.ends_when_lost and self._task.gt_video in self._rejected:
            return self._end("lost")
        self._result = after
        if len(self._trajectory.turns) == self._agent.max_turns:
            return self._end("max_turns")
        return await self._show()

    def trajectory(self) -> SearchTrajectory:
        return self._trajectory

    @property
    def index_version(self) -> str:
        """Return the version of the corpus that is searched, empty before the first search."""
        return self._version or ""

    @property
    def number(self) -> int:
        """Return the turn that is being played, from 1."""
        return len(self._trajectory.turns) + 1

    def _tell(self, judgement: Judgement) -> None:
        seconds = time.monotonic() - self._shown_at
        shown = self._clip.video_id
        self._observe(Judged(self.number, shown, judgement.verdict, judgement.span, judgement.think or "", seconds))

    def _refined_request(self, reply: PolicyReply, rewrite: str | None) -> SearchRequest | None:
        """Return the next search, None if the reply holds nothing to refine the query with."""
        match self._agent.refinement:
            case "none":
                return SearchRequest(query=self._task.query)
            case "text":
                return None if rewrite is None else SearchRequest(query=rewrite)
            case "latents":
                if reply.soft_tokens is None:
                    return None
                if self._agent.latents_of_turns == "replace":
                    self._soft.clear()
                self._soft.append(reply.soft_tokens)
                return SearchRequest(query=self._task.query, soft_tokens=np.concatenate(self._soft))

    def _record(
        self,
        reply: PolicyReply,
        judgement: Judgement,
        rewrite: str | None,
        after: SearchResult | None,
        ranks_by_depth: list[int] | None,
    ) -> None:
        """Add the turn to the trajectory.

        Args:
            after: of the search with the refined query, None without one.
        """
        before, right, shown = self._result, self._task.gt_video, self._clip.video_id
        negatives = negatives_of(right, shown, self._task.negatives)
        has_latents = after is not None and reply.latents is not None
        record = SearchTurn(
            video_id=shown,
            verdict=judgement.verdict,
            span=judgement.span,
            retrieved=before.retrieved,
            gt_rank_before=self._rank(before),
            gt_rank_after=self._rank(after) if after else None,
            index_version=before.index_version,
            refined=has_latents or rewrite is not None,
            gt_score_before=before.scores[right] if right else None,
            gt_score_after=after.scores[right] if after and right else None,
            negative_scores_before=[before.scores[video] for video in negatives],
            negative_scores_after=[after.scores[video] for video in negatives] if after else None,
            rewrite=rewrite,
            retrieved_after=after.retrieved if after else None,
            ranks_by_depth=ranks_by_depth,
        )
        seconds = time.monotonic() - self._shown_at
        turn = turn_of(reply, self.number, [self._clip], record, seconds=seconds, keep_latents=has_latents)
        self._trajectory.turns.append(turn)

    async def _retrieve(self, request: SearchRequest) -> SearchResult:
        first = [self._task.first_video] if self._task.first_video else []
        right = [self._task.gt_video] if self._task.gt_video else []
        wanted = [*right, *self._task.negatives, *first, *self._shown]
        result = await self._search(
            replace(
                request,
                k=self._settings.top_k,
                exclude=list(self._rejected),
                rank_of=self._task.gt_video or None,
                scores_of=list(dict.fromkeys(wanted)),
                index_version=self._version,
            )
        )
        self._version = result.index_version
        return replace(result, scores=dict(result.retrieved) | result.scores)

    async def _ranks_by_depth(self, request: SearchRequest, after: SearchResult) -> list[int] | None:
        """Return the ranks of the right video with the first 1, 2, ... latents; the last is that of `after`."""
        if request.soft_tokens is None or not self._settings.rank_by_depth:
            return None
        latents = len(self._soft[-1])
        shorter = (
            replace(request, soft_tokens=request.soft_tokens[:-dropped]) for dropped in range(latents - 1, 0, -1)
        )
        results = await asyncio.gather(*map(self._retrieve, shorter))
        return [self._rank(result) for result in [*results, after]]

    async def _show(self, video: str | None = None) -> Observation | None:
        self._observe(Retrieved(self.number, self._result.retrieved, self._result.index_version))
        if video is None:
            if not self._result.retrieved:
                return self._end("corpus_exhausted")
            video = self._result.retrieved[0][0]
        self._clip = await self._load_clip(video)
        self._shown.append(self._clip.video_id)
        self._shown_at = time.monotonic()
        self._observe(TurnStarted(self.number, video))
        before, after = turn_parts(self._task.query, self._settings.system_prompt)
        return Observation([before, self._clip, after])

    def _rank(self, result: SearchResult) -> int:
        """Return the rank of the right video, 0 where there is none to ask for."""
        return result.rank_of or 0

    def _end(self, reason: EndReason) -> Observation | None:
        """End the episode: no observation follows."""
        self._trajectory.end_reason = reason
        return None


def seconds_shown(clip: Clip, task: SearchTask) -> float:
    """Return the length of the shown video in seconds; that of the right one is its annotation's."""
    if clip.video_id == task.gt_video:
        return task.gt_duration
    return clip.seconds
