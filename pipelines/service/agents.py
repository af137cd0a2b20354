"""The agents: replicas that hold an engine each, and play the searches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import ray
from ray import serve

from pipelines.service.library import node_id
from pipelines.service.schema import SearchBody
from pipelines.service.searching import OnText, Searching
from pipelines.service.stream import Event
from vsr1.agent.environment import Observation
from vsr1.config import AgentConfig, Config
from vsr1.engine.engine import PolicyEngine, Reply
from vsr1.formats.clips import Clip
from vsr1.retrieval.request import SearchRequest, SearchResult


class AgentReplica:
    """One engine with the policy of `model.policy`, on any corpus of the library."""

    async def __init__(self, config: Config, library: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config, self._library = config, library
        model = config.model
        self._engine = await PolicyEngine.start(
            model.policy,
            config.rollout.engine,
            device=model.device,
            dtype=model.dtype,
            allow_bin=model.allow_bin,
        )
        self._parts: dict[str, tuple[Any, Any]] = await library.parts.remote(node_id())

    async def search(self, search_id: str, body: SearchBody, corpus: str) -> AsyncIterator[Event]:
        """Events of one search, see `Searching`."""
        names = (search_id, corpus, self._config.serve.model)
        searching = Searching(body, self._config.agent, names, self._config.serve.request_limit_s)
        retrieval, clips = self._parts[corpus]
        events = searching.events(partial(_search, retrieval), partial(_clip, clips), self._reply)
        async for event in events:
            yield event

    async def _reply(self, observation: Observation, turn: int, agent: AgentConfig, on_text: OnText) -> Reply:
        return await self._engine.generate(
            observation.prompt,
            observation.clip,
            max_tokens=agent.max_new_tokens,
            latents=agent.depth,
            temperature=0.0,
            seed=turn,
            on_text=on_text,
        )


async def _search(retrieval: Any, request: SearchRequest) -> SearchResult:
    found: SearchResult = await retrieval.search.remote(request)
    return found


async def _clip(clips: Any, video_id: str) -> Clip:
    reference = await clips.get.remote(video_id)
    clip: Clip = await asyncio.to_thread(
        ray.get, reference
    )  # awaiting a reference of another owner can hang (Ray 2.60)
    return clip


Agents: Any = serve.deployment(AgentReplica, name="agent")
