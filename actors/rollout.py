"""The rollout worker: one vLLM engine and many episodes at once.

It returns each turn as it is finished, with the engine's own tokens, and never batches for training. New weights come
in through `push`, between turns only. A worker whose engine process is gone ends: its callers see a dead actor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from weakref import WeakValueDictionary

import ray

from actors.handles import RETRIES, answer_of, answer_when_back
from actors.logs import log_to
from vsr1.config import Config
from vsr1.episode.environment import Environment, FinishedTurn, Prompt, replies_of
from vsr1.episode.trajectory import Turn
from vsr1.navigate.calls import ToolCall, ToolResult, node_clip
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.record import NavigateTask, NavigateTrajectory, NavigateTurn
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.environment import LoadClip, SearchEnvironment, SearchSettings
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask
from vsr1.settings.parts import AgentConfig
from vsr1.shared_calls import SharedCalls
from vsr1.video.clips import Clip

if TYPE_CHECKING:
    import numpy as np

    from vsr1.engine.engine import PolicyEngine, Reply, Way

PROBE_PAUSE_S = 0.02
KNOWN_PACKAGES = {*sys.stdlib_module_names, "actors", "ray", "vsr1"}
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # for files of a moment; None: the temporary folder


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled, and what a search lists."""

    top_k: int  # videos
    temperature: float = 0.0  # 0 decodes greedily
    sigma: float = 0.0  # standard deviation of the noise on each latent
    rank_by_depth: bool = False  # see `SearchSettings`
    top_p: float = 1.0  # sum of the probabilities of the tokens sampled from
    tokens: int = 0  # most tokens sampled from; 0: all


def tools_name(split: str) -> str:
    """Return under which name a worker has the router of a split that is searched too."""
    return f"tools-{split}"


async def answer_call(router: Any, load_clip: LoadClip, call: ToolCall) -> ToolResult:
    """Answer a call of a tool: a look from the clip store of this node, others from the router."""
    if call.tool == "look":
        return ToolResult("", await load_clip(node_clip(call.film, call.node or ())))
    result: ToolResult = await answer_of(answer_when_back(router.use, call))
    return result


async def start_engine(config: Config, policy: Path) -> PolicyEngine:
    """Start the engine of a run with this checkpoint."""
    from vsr1.engine.engine import PolicyEngine  # vLLM is imported in the workers, not by who starts them

    model, settings = config.model, config.rollout.engine
    return await PolicyEngine.start(policy, settings, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin)


class RolloutWorkerActor:
    """`retrieval` holds, by split, the handle of its `RetrievalService`, or of its `ToolRouter` to navigate.

    To do both it has the router under the split's `tools_name`.
    """

    def __init__(self, config: Config, retrieval: dict[str, Any], log: Path | None = None) -> None:
        log_to(log)
        self._config, self._retrieval = config, retrieval
        self._engine: PolicyEngine | None = None
        self._shown: WeakValueDictionary[tuple[str, str], Clip] = WeakValueDictionary()  # in episodes of this moment
        self._clip_calls: SharedCalls[Clip] = SharedCalls()
        self._search_calls: SharedCalls[SearchResult] = SharedCalls()

    async def node(self) -> str:
        """Return the id of the Ray node that this worker is on."""
        return str(ray.get_runtime_context().get_node_id())

    async def start(self, clips: dict[str, Any]) -> None:
        """Load the policy into the engine; await it once before the first rollout.

        Args:
            clips: by split, the handle of the `ClipStore` on this worker's node.
        """
        self._clips = clips
        self._loop = asyncio.get_running_loop()
        self._engine = await self._start_engine()
        threading.Thread(target=self._end_with, args=(self._engine,), daemon=True).start()

    async def _start_engine(self) -> PolicyEngine:
        return await start_engine(self._config, self._config.model.policy)

    def _end_with(self, engine: PolicyEngine) -> None:
        """End this process with that of its engine, unless `stop` has ended it, whatever the event loops do."""
        engine.outlived()
        if self._engine is engine:
            self._end()

    async def rollout(
        self,
        split: str,
        task: SearchTask | NavigateTask,
        agent: AgentConfig,
        sampling: Sampling,
        finished: Sequence[FinishedTurn] = (),
    ) -> AsyncIterator[
        tuple[Turn[SearchTurn] | Turn[NavigateTurn], np.ndarray | None] | SearchTrajectory | NavigateTrajectory
    ]:
        """Play one episode over a split; yield each turn with its reply's soft tokens, last the rest of the trajectory.

        Args:
            finished: turns of an attempt that was lost; they come again, without the engine.
        """
        settings = SearchSettings.of(agent, sampling.top_k, sampling.rank_by_depth)
        environment = self._environment(split, task, settings, finished[0].index_version if finished else None)

        async def reply_to(prompt: Prompt, turn: int) -> Reply:
            with self._ready() as engine:
                return await engine.generate(
                    prompt,
                    max_tokens=agent.max_new_tokens,
                    latents=agent.depth,
                    temperature=sampling.temperature,
                    seed=task.id.seed(self._config.seed, turn),
                    sigma=sampling.sigma,
                    top_p=sampling.top_p,
                    top_k=sampling.tokens,
                )

        async for reply in replies_of(environment, reply_to, finished):
            yield environment.trajectory().last, reply.soft_tokens
        yield replace(environment.trajectory(), turns=[])

    @ray.method(concurrency_group="health")  # on a loop of its own: preparing prompts may hold the other one up
    async def probe(self) -> None:
        """Return at the next sign of life of an engine at work; an idle one is asked for a token, and must give it."""
        with self._ready() as engine:
            request, signs = None, engine.signs
            if engine.is_idle:
                request = asyncio.run_coroutine_threadsafe(engine.one_token(), self._loop)
                signs += 1  # of its being taken, which is no answer
            while engine.signs <= signs:
                if request is not None and request.done():
                    request.result()
                    return
                if request is None and engine.is_idle:
                    return
                await asyncio.sleep(PROBE_PAUSE_S)

    async def push(self, way: Way, sent: tuple[Any, Any], version: int) -> str:
        """Take new weights once the running replies are there, check them, and answer with them.

        Args:
            way: how the learner sends them.
            sent: what it sends, and the manifest. `file`: safetensors bytes; `ipc`: CUDA IPC handles; `nccl`: the
                layout of the broadcast that it sends now, and a reference to the manifest.
            version: of these weights.

        Returns:
            what names the weights that the engine holds now (`vsr1.model.manifest.digest`).

        Raises:
            PushError: some did not arrive.
        """
        from vsr1.model.manifest import digest

        weights, manifest = sent
        with self._ready() as engine:
            if way == "file":
                with tempfile.NamedTemporaryFile(suffix=".safetensors", dir=SHARED_MEMORY) as file:
                    file.write(weights)
                    file.flush()
                    await engine.push_weights(way, [file.name], version, manifest)
            else:
                await engine.push_weights(way, weights, version, manifest)
        self._manifest = await manifest if isawaitable(manifest) else manifest
        return digest(self._manifest)

    async def give(self) -> tuple[bytes, Any]:
        """Return the weights of the last push as another worker takes them by `file`, and their manifest."""
        with self._ready() as engine, tempfile.NamedTemporaryFile(suffix=".safetensors", dir=SHARED_MEMORY) as file:
            await engine.write_weights(Path(file.name), self._manifest)
            return Path(file.name).read_bytes(), self._manifest

    async def join_transfer(self, host: str, port: int, rank: int, world_size: int) -> None:
        """Join the learner's NCCL group, see `PolicyEngine.join_transfer`."""
        with self._ready() as engine:
            await engine.join_transfer(host, port, rank, world_size)

    async def stop(self) -> None:
        """End the engine process."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def _environment(
        self, split: str, task: SearchTask | NavigateTask, settings: SearchSettings, version: str | None
    ) -> Environment[Any, Any]:
        """Return the environment of a task, a fresh one; searches go by `settings` and a version of the corpus."""
        use = partial(self._use, split)
        if isinstance(task, NavigateTask):
            return NavigateEnvironment(task, self._config.navigate, use)
        search, clip = partial(self._search, split), partial(self._clip, split)
        if isinstance(task, LongSearchTask):
            navigate = self._config.navigate
            return SearchThenNavigateEnvironment(
                task, settings, navigate, search, clip, use, index_version=version or None
            )
        return SearchEnvironment(task, settings, search, clip, index_version=version)

    async def _search(self, split: str, request: SearchRequest) -> SearchResult:
        """Answer a search; the samples of a group begin with the same one, and share its answer."""
        search = partial(answer_when_back, self._retrieval[split].search, request)
        if request.soft_tokens is not None or request.vector is not None:
            return await search()
        return await self._search_calls.answer((split, repr(request)), search)

    async def _use(self, split: str, call: ToolCall) -> ToolResult:
        """Answer a call of a tool, see `answer_call`."""
        router = self._retrieval.get(tools_name(split)) or self._retrieval[split]
        return await answer_call(router, partial(self._clip, split), call)

    async def _clip(self, split: str, video_id: str) -> Clip:
        """Return a clip, which all episodes that look at it share: its frames come to this process once."""
        clip = self._shown.get((split, video_id))
        if clip is None:
            get = partial(self._clips[split].get.options(max_task_retries=RETRIES).remote, video_id)
            clip = await self._clip_calls.answer((split, video_id), get)
            self._shown[split, video_id] = clip
        return clip

    @contextmanager
    def _ready(self) -> Iterator[PolicyEngine]:
        """Yield the engine, and let its errors out as classes that every process here has.

        To take an error of vLLM's own class the driver would import vLLM, and be deaf to all others for seconds.
        """
        engine = self._engine
        if engine is None:
            raise RuntimeError("the rollout worker has no engine; await start() first")
        try:
            yield engine
        except Exception as error:
            if engine.is_dead:
                self._end()
            if type(error).__module__.partition(".")[0] in KNOWN_PACKAGES:
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _end(self) -> NoReturn:
        logging.error("the engine process is gone, and this worker ends with it", exc_info=True)
        os._exit(1)


class RolloutWorkerHandle(Protocol):
    """What Ray gives for a `RolloutWorkerActor`; each method is called with `.remote`."""

    node: Any
    start: Any
    rollout: Any
    probe: Any
    push: Any
    give: Any
    join_transfer: Any
    stop: Any


# Any: the stubs of Ray give a handle no `.remote`.
RolloutWorker: Any = ray.remote(concurrency_groups={"health": 2})(RolloutWorkerActor)
