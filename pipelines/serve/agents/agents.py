"""The agents: replicas that hold an engine each, and play the searches.

A search ends with the weights it began with: new ones are loaded when the replica's searches are over, by a gate for
whole searches in front of the engine's own for requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError

from actors.rollout import answer_call, start_engine
from pipelines.serve.agents.asking import Asking
from pipelines.serve.agents.playing import OnText
from pipelines.serve.agents.searching import Searching
from pipelines.serve.agents.weights import Weights
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import AskBody, SearchBody
from pipelines.serve.library.library import node_id
from vsr1.config import Config
from vsr1.engine.gate import Gate
from vsr1.environments.registry import environment_of
from vsr1.episode.environment import Prompt, PromptError
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.prompts import VIDEO_PLACEHOLDER
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

if TYPE_CHECKING:
    from vsr1.engine.engine import PolicyEngine, Reply


class AgentReplica:
    """One engine with a policy, on any corpus of the library. Serve calls `reconfigure` before the first search."""

    def __init__(self, config: Config, name: str, library: Any) -> None:
        self._config, self._name, self._library = config, name, library
        self._parts: dict[str, tuple[Any, Any]] = {}  # of each corpus
        self._tools: dict[str, Any] = {}  # routers of the tools, where long videos are navigated
        self._gate = Gate()
        self._engine: PolicyEngine | None = None
        self._weights: Weights | None = None

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Start the engine with a checkpoint, or load its weights into the engine that runs.

        Args:
            wanted: a `Weights`.

        Raises:
            CheckpointError: the checkpoint is no policy, or does not fit the engine that runs.
            PushError: the weights did not arrive whole; searches are refused from then on. After either Serve replaces
                the replica.
        """
        from vsr1.model.manifest import record_files
        from vsr1.model.replacement import replacing_files

        weights = Weights.model_validate(wanted)
        if self._engine is None or self._weights is None:
            self._engine = await start_engine(self._config, weights.checkpoint)
            self._engine.weight_version = weights.version
        else:
            files = await asyncio.to_thread(replacing_files, weights.checkpoint, self._weights.checkpoint)
            manifest = await asyncio.to_thread(record_files, files, self._config.model.dtype)
            async with self._gate.shut():
                paths = [str(file) for file in files]
                await self._engine.push_weights("file", paths, weights.version, manifest)
        self._weights = weights

    async def check_health(self) -> None:
        """Raise what ended the engine, so that Serve replaces this replica."""
        if self._engine is not None:
            await self._engine.check_health()

    async def search(self, search_id: str, body: SearchBody | AskBody, corpus: str) -> AsyncIterator[Event]:
        """Yield the events of one search, or of one question, see `Searching` and `Asking`.

        Raises:
            UnknownVideoError: a question about a film that the corpus has not.
        """
        async with self._gate.enter():
            names = (search_id, corpus, self._name)
            version = self._ready().weight_version
            config, use = self._config, None
            agent, navigate, limit_s = config.agent, config.navigate, config.serve.request_limit_s
            retrieval, clips = await self._parts_of(corpus)
            load_clip = partial(_clip, clips)
            if environment_of(config).has_films:
                use = partial(answer_call, self._tools[corpus], load_clip)
            if isinstance(body, AskBody):
                film = await self._library.film.remote(corpus, body.film)
                assert use is not None
                events = Asking(body, film, agent, names, version, limit_s, navigate).events(use, self._reply)
            else:
                searching = Searching(body, agent, names, version, limit_s, navigate)
                events = searching.events(partial(_search, retrieval), load_clip, self._reply, use)
            try:
                async for event in events:
                    yield event
            except (RayActorError, ObjectLostError):
                self._parts.clear()  # the library has new actors, or will have
                raise
            finally:
                await events.aclose()

    async def _parts_of(self, corpus: str) -> tuple[Any, Any]:
        """Return the corpus's retrieval service and its clip store."""
        if corpus not in self._parts:
            self._parts = await self._library.parts.remote(node_id())
            self._tools = await self._library.tools.remote()
        return self._parts[corpus]

    async def _reply(self, prompt: Prompt, turn: int, agent: AgentConfig, on_text: OnText) -> Reply:
        """Return the engine's reply.

        Raises:
            PromptError: the engine would not take the prompt; it is raised before the first wait.
        """
        engine, most = self._ready(), self._config.rollout.engine.max_model_len
        processor, clips = engine.processor, prompt.clips
        words = len(prompt.token_ids(processor.encode, processor.video_token)) - len(clips)
        count = words + sum(len(processor.prompt_ids(VIDEO_PLACEHOLDER, clip)) for clip in clips)
        if count >= most:
            shown = f" with video {clips[-1].video_id!r}" if clips else ""
            raise PromptError(f"the prompt has {count} tokens{shown}, the model takes {most}")
        return await engine.generate(
            prompt,
            max_tokens=agent.max_new_tokens,
            latents=agent.depth,
            temperature=0.0,
            seed=turn,
            on_text=on_text,
        )

    def _ready(self) -> PolicyEngine:
        if self._engine is None:
            raise RuntimeError(f"the agent of model {self._name!r} has no engine; Serve calls reconfigure first")
        return self._engine


async def _search(retrieval: Any, request: SearchRequest) -> SearchResult:
    result: SearchResult = await retrieval.search.remote(request)
    return result


async def _clip(clips: Any, video_id: str) -> Clip:
    clip: Clip = await clips.get.remote(video_id)
    return clip


Agents: Any = serve.deployment(AgentReplica)
