"""One search of the served agent: the episode of training and evaluation, told as events while it runs.

Every search ends in exactly one `done` or `error` event, whatever happens to the engine or a shard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pipelines.serve.gateway.schema import (
    Found,
    Moment,
    SearchAnswer,
    SearchBody,
    TurnTrace,
    Usage,
    deep_link,
    thumbnail_url,
)
from pipelines.serve.gateway.stream import Event
from vsr1.episode.environment import Observation, run_episode
from vsr1.search.environment import LoadClip, Search, SearchEnvironment, SearchSettings
from vsr1.search.events import Judged, Refined, Retrieved, SearchEvent, TurnStarted
from vsr1.search.record import Ranking, SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

if TYPE_CHECKING:
    from vsr1.engine.engine import Reply

OnText = Callable[[str], None]
ReplyTo = Callable[[Observation, int, AgentConfig, OnText], Awaitable["Reply"]]


class Searching:
    """State of one search; iterate over `events` once.

    Args:
        agent: as it was trained; the body may change its turns.
        names: id of the search, names of corpus and model.
        weight_version: of the model, as long as this search runs.
        limit_s: after which the search ends with what it has.
    """

    def __init__(
        self, body: SearchBody, agent: AgentConfig, names: tuple[str, str, str], weight_version: int, limit_s: float
    ) -> None:
        self._body, self._weight_version, self._limit_s = body, weight_version, limit_s
        self._agent = agent.model_copy(update={"max_turns": body.max_turns or agent.max_turns})
        self._id, self._corpus, self._model = names
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._turns: list[TurnTrace] = []
        self._replies: list[Reply] = []
        self._began = time.monotonic()

    async def events(self, search: Search, load_clip: LoadClip, reply_to: ReplyTo) -> AsyncGenerator[Event, None]:
        """Play the episode and yield its events; the last is `done`. Errors of its parts come through.

        A reader that stops early cancels the episode, which frees its place in the engine.
        """
        task = SearchTask(self._id, self._body.query, exclude=self._body.exclude_ids)
        settings = SearchSettings.of(self._agent, self._body.top_k)
        environment = SearchEnvironment(task, settings, search, load_clip, self._observe)

        async def reply(observation: Observation, turn: int) -> Reply:
            found = await reply_to(observation, turn, self._agent, lambda text: self._told(turn, text))
            self._replies.append(found)
            return found

        async def play() -> SearchTrajectory | None:
            try:
                async with asyncio.timeout(self._limit_s):
                    return await run_episode(environment, reply)
            except TimeoutError:
                return None
            finally:
                self._queue.put_nowait(None)

        episode = asyncio.create_task(play())
        try:
            while (event := await self._queue.get()) is not None:
                yield event
            played = await episode
        finally:
            episode.cancel()
        for event in self._ending(played):
            yield event

    def _ending(self, played: SearchTrajectory | None) -> list[Event]:
        last = played.last if played and played.segments else None
        moments = []
        if last and last.verdict == "matched" and last.span is not None:
            score = dict(last.retrieved)[last.video_id]
            if self._body.threshold is None or score >= self._body.threshold:
                moments.append(self._moment(last.video_id, *last.span, score))
        answer = SearchAnswer(
            id=self._id,
            status="partial" if played is None else "matched" if moments else "not_found",
            query=self._body.query,
            corpus=self._corpus,
            moments=moments,
            turns=self._turns,
            usage=Usage(
                prompt_tokens=sum(len(reply.prompt_token_ids) for reply in self._replies),
                text_tokens=sum(len(reply.token_ids) for reply in self._replies),
                latent_tokens=sum(0 if reply.latents is None else len(reply.latents) for reply in self._replies),
                seconds=time.monotonic() - self._began,
            ),
            model=self._model,
            weight_version=self._weight_version,
            index_version=last.index_version if last else None,
        )
        told = [{"type": "moment", **moment.model_dump()} for moment in moments]
        return [*told, {"type": "done", "result": answer.model_dump()}]

    def _moment(self, video_id: str, start: float, end: float, score: float) -> Moment:
        return Moment(
            video_id=video_id,
            start=start,
            end=end,
            score=score,
            thumbnail_url=thumbnail_url(self._corpus, video_id, (start + end) / 2),
            deep_link=deep_link(self._body.query, self._corpus, video_id, start, end),
        )

    def _told(self, turn: int, text: str) -> None:
        self._queue.put_nowait({"type": "reasoning.delta", "turn": turn, "text": text})

    def _observe(self, event: SearchEvent) -> None:
        match event:
            case Retrieved(turn, ranking, version):
                self._turns.append(TurnTrace(turn=turn, retrieved=_found(ranking)))
                self._put("retrieved", turn, videos=_plain(ranking), index_version=version)
            case TurnStarted(turn, video):
                trace = self._turns[-1]
                trace.video_id = video
                trace.rank = next((i for i, found in enumerate(trace.retrieved, 1) if found.video_id == video), None)
                self._put("turn.started", turn, video_id=video)
            case Judged(turn, video, verdict, span, think, seconds):
                trace = self._turns[-1]
                trace.verdict, trace.reasoning, trace.seconds = verdict, think, seconds
                self._put("verdict", turn, video_id=video, verdict=verdict, span=span, seconds=seconds)
            case Refined(turn, before, after):
                self._turns[-1].refined = _found(after)
                self._put("refined", turn, before=_plain(before), after=_plain(after))

    def _put(self, kind: str, turn: int, **values: Any) -> None:
        self._queue.put_nowait({"type": kind, "turn": turn, **values})


def _found(ranking: Ranking) -> list[Found]:
    return [Found(video_id=video, score=score) for video, score in ranking]


def _plain(ranking: Ranking) -> list[dict[str, Any]]:
    return [found.model_dump() for found in _found(ranking)]
