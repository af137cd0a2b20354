"""The video search environment: retrieve, show, read the verdict, refine, retrieve again.

Each turn is a fresh prompt about one video (method.md §2.4). A rejected video is not shown again unless the settings
say so; ranks are always those of the whole corpus. An accepted video ends the search, and its query stays as it was
(method.md §2.4). What is returned is complete: a search that fails raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np

from vsr1.episode.environment import Observation, PolicyReply
from vsr1.episode.trajectory import Segment, Span, Trajectory
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.events import Judged, Observe, Refined, Retrieved, TurnStarted, unobserved
from vsr1.search.parse import last_element, parse_reply
from vsr1.search.prompts import agent_prompt, turn_prompt
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

Search = Callable[[SearchRequest], Awaitable[SearchResult]]
LoadClip = Callable[[str], Awaitable[Clip]]


@dataclass
class SearchTask:
    """One sample of one query, with what is known about its answer: nothing, when serving."""

    query_id: str
    query: str
    gt_video: str = ""
    gt_span: Span = (0.0, 0.0)  # seconds
    gt_duration: float = 0.0  # seconds
    negatives: list[str] = field(default_factory=list)  # wrong videos whose scores the reward compares
    sample: int = 0
    seed: int = 0
    first_video: str | None = None  # shown in turn 1 instead of what the search finds
    exclude: list[str] = field(default_factory=list)  # videos that are never shown
    ends_when_lost: bool = False  # with the rejection of the right video, if that is not shown again


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
    def __init__(
        self,
        task: SearchTask,
        settings: SearchSettings,
        search: Search,
        load_clip: LoadClip,
        observe: Observe = unobserved,
    ) -> None:
        self._task, self._settings, self._agent = task, settings, settings.agent
        self._search, self._load_clip, self._observe = search, load_clip, observe
        self._rejected = list(task.exclude)
        self._soft: list[np.ndarray] = []  # of the turns so far, [N, E] each
        self._shown: list[str] = []
        self._version: str | None = None  # of the corpus, the same from the first search to the last
        self._trajectory = Trajectory(
            task.query_id, task.query, task.gt_video, task.gt_span, task.gt_duration, task.sample, task.seed
        )

    async def reset(self) -> Observation | None:
        self._found = await self._retrieve(SearchRequest(query=self._task.query))
        return await self._show(self._task.first_video)

    async def step(self, reply: PolicyReply) -> Observation | None:
        shown = self._clip.video_id
        parsed = parse_reply(reply.text, seconds_shown(self._clip, self._task.gt_video, self._task.gt_duration))
        accepted = parsed.verdict == "matched"
        if self._agent.exclude_rejected and not accepted:
            self._rejected.append(shown)
        rewrite = None
        if self._agent.refinement == "text" and not accepted:
            rewrite = (last_element(reply.text, "query") or "").strip() or None
        request = None if accepted else self._refined(reply, rewrite)
        turn = len(self._trajectory.segments) + 1
        said_after = time.monotonic() - self._shown_at
        self._observe(Judged(turn, shown, parsed.verdict, parsed.span, parsed.think or "", said_after))
        after = None if request is None else await self._retrieve(request)
        if after is not None:
            self._observe(Refined(turn, self._found.retrieved, after.retrieved))
        right = self._task.gt_video
        negatives = [video for video in dict.fromkeys([*self._task.negatives, shown]) if video != self._task.gt_video]
        self._trajectory.segments.append(
            Segment(
                turn=turn,
                video_id=shown,
                clip_hash=self._clip.content_hash,
                prompt_token_ids=reply.prompt_token_ids,
                response_token_ids=reply.token_ids,
                response_logprobs=reply.logprobs,
                text=reply.text,
                finish_reason=reply.finish_reason,
                verdict=parsed.verdict,
                span=parsed.span,
                latents=reply.latents if request else None,
                noise=reply.noise if request else None,
                retrieved=self._found.retrieved,
                gt_rank_before=self._rank(self._found),
                gt_rank_after=self._rank(after) if after else None,
                index_version=self._found.index_version,
                weight_version=reply.weight_version,
                seconds=time.monotonic() - self._shown_at,
                gt_score_before=self._found.scores[right] if right else None,
                gt_score_after=after.scores[right] if after and right else None,
                negative_scores_before=[self._found.scores[video] for video in negatives],
                negative_scores_after=[after.scores[video] for video in negatives] if after else None,
                rewrite=rewrite,
                ranks_by_depth=await self._ranks_by_depth(request, after) if request and after else None,
                retrieved_after=after.retrieved if after else None,
            )
        )
        if accepted:
            return self._end("matched")
        if after is None:
            return self._end("no_refinement")
        if self._task.ends_when_lost and right in self._rejected:
            return self._end("lost")
        self._found = after
        if len(self._trajectory.segments) == self._agent.max_turns:
            return self._end("max_turns")
        return await self._show()

    def trajectory(self) -> Trajectory:
        return self._trajectory

    def _refined(self, reply: PolicyReply, rewrite: str | None) -> SearchRequest | None:
        """The next search, None if the reply holds nothing to refine the query with."""
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
        """Rank of the right video with the first 1, 2, ... latents of this refinement; the last is that of `after`."""
        if request.soft_tokens is None or not self._settings.rank_by_depth:
            return None
        latents = len(self._soft[-1])
        shorter = (
            replace(request, soft_tokens=request.soft_tokens[:-dropped]) for dropped in range(latents - 1, 0, -1)
        )
        results = await asyncio.gather(*map(self._retrieve, shorter))
        return [self._rank(result) for result in [*results, after]]

    async def _show(self, video: str | None = None) -> Observation | None:
        turn = len(self._trajectory.segments) + 1
        self._observe(Retrieved(turn, self._found.retrieved, self._found.index_version))
        if video is None:
            if not self._found.retrieved:
                return self._end("corpus_exhausted")
            video = self._found.retrieved[0][0]
        self._clip = await self._load_clip(video)
        self._shown.append(self._clip.video_id)
        self._shown_at = time.monotonic()
        self._observe(TurnStarted(turn, video))
        return Observation(turn_prompt(self._task.query, self._settings.system_prompt), self._clip)

    def _rank(self, result: SearchResult) -> int:
        """Of the right video, 0 where there is none."""
        if not self._task.gt_video:
            return 0
        if result.rank_of is None:
            raise ValueError("the retrieval service left out the rank it was asked for")
        return result.rank_of

    def _end(self, reason: str) -> Observation | None:
        """No observation follows."""
        self._trajectory.end_reason = reason
        return None


def seconds_shown(clip: Clip, gt_video: str, gt_duration: float) -> float:
    """Length of the shown video in seconds; of a wrong one, up to a frame interval past its last frame."""
    if clip.video_id == gt_video:
        return gt_duration
    times = clip.timestamps
    return float(times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1))
