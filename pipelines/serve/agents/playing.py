"""One episode of the served agent, that of training and evaluation, told as events while it runs.

Every episode ends in one `done`, or raises what ended it; the gateway makes that an `error` event.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

from pipelines.serve.gateway.events import Event, EventLog
from pipelines.serve.gateway.schema import AskBody, CallTrace, SearchBody, Usage
from vsr1.episode.environment import Environment, PolicyReply, Prompt, run_episode
from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.search.record import latents_of
from vsr1.search_then_navigate.environment import Called
from vsr1.settings.parts import AgentConfig

OnText = Callable[[str], None]
ReplyTo = Callable[[Prompt, int, AgentConfig, OnText], Awaitable[PolicyReply]]


class Playing(ABC):
    """State of one episode.

    Args:
        agent: as it was trained.
        names: id of the episode, names of corpus and model.
        weight_version: of the model, as long as this episode runs.
        limit_s: after which the episode ends with what it has.
    """

    def __init__(
        self,
        body: SearchBody | AskBody,
        agent: AgentConfig,
        names: tuple[str, str, str],
        weight_version: int,
        limit_s: float,
    ) -> None:
        self._agent, self._weight_version, self._limit_s = agent, weight_version, limit_s
        self._budget = body.budget
        self._id, self._corpus, self._model = names
        self._log = EventLog()
        self._began = time.monotonic()

    async def _played(
        self, environment: Environment[Any, Any], number: Callable[[], int], reply_to: ReplyTo
    ) -> AsyncGenerator[Event, None]:
        """Play the episode and yield its events; the last is `done`. Errors of its parts come through.

        No event comes before the policy has taken the first prompt: what `reply_to` raises before its first wait, and
        what goes wrong before it is called, comes before any event. A reader that stops early cancels the episode,
        which frees its place in the engine.

        Args:
            number: gives the turn that a reply belongs to.
        """
        begun = asyncio.Event()

        async def reply(prompt: Prompt, turn: int) -> PolicyReply:
            asyncio.get_running_loop().call_soon(begun.set)
            now = number()
            return await reply_to(prompt, turn, self._agent, lambda text: self._tell("reasoning.delta", now, text=text))

        async def play() -> None:
            with closing(self._log):
                try:
                    async with asyncio.timeout(self._limit_s):
                        await run_episode(environment, reply)
                    is_whole = True
                except TimeoutError:
                    is_whole = False
                self._end(environment.trajectory(), is_whole)

        episode = asyncio.create_task(play())
        episode.add_done_callback(lambda _: begun.set())
        try:
            await begun.wait()
            if episode.done():
                episode.result()  # raises what ended it
            async for _, event in self._log.read():
                yield event
            await episode
        finally:
            episode.cancel()

    @abstractmethod
    def _end(self, trajectory: Trajectory[Any, Any], is_whole: bool) -> None:
        """Tell the whole answer."""

    def _usage(self, turns: Sequence[Turn[Any]]) -> Usage:
        return Usage(
            prompt_tokens=sum(len(turn.prompt_token_ids) for turn in turns),
            text_tokens=sum(len(turn.response_token_ids) for turn in turns),
            latent_tokens=sum(map(latents_of, turns)),
            seconds=time.monotonic() - self._began,
        )

    def _calls(self, turn: int | None = None) -> list[dict[str, Any]]:
        """Return the calls of a turn, or of all, as they were told."""
        events = (event for event in self._log.events if event["type"] == "called" and turn in (None, event["turn"]))
        return [{name: event[name] for name in CallTrace.model_fields} for event in events]

    def _tell_call(self, event: Called) -> None:
        call, (start, end) = event.call, event.span or (None, None)
        values = {"tool": call.tool, "words": call.words, "status": call.status, "left": call.left}
        node = None if call.node is None else list(call.node)
        self._tell("called", event.turn, video_id=event.film, node=node, start=start, end=end, **values)

    def _tell(self, kind: str, turn: int, **values: Any) -> None:
        self._log.add({"type": kind, "turn": turn, **values})
