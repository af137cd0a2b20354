"""What tools cost the loop: episodes a second with the router and its pools, beside the same replies without them.

Workers, router, pools, rewards, fleet and pump are those of Stage 2. Engines and captioners wait a fixed time instead
of computing, so the figures show what the loop does, not what the machine can. Without tools a worker answers its calls
itself, at once. A busy pool has other calls in flight at all times, as many as one of its actors works on.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import ray

from actors.rewards import RewardWorker
from actors.rollout import RolloutWorkerActor, Sampling
from actors.tools import ToolRouterHandle, start_tools
from bench.measure import Rounds
from pipelines.stage.connection import connect
from pipelines.stage.fleet import RolloutFleet
from pipelines.stage.pump import RolloutPump
from pipelines.stage.tasks import group_of
from pipelines.stage.watch import Watch
from pipelines.stage.workers import complete
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.episode.environment import Prompt
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.navigate.prompts import name_of
from vsr1.navigate.record import NavigateTask
from vsr1.navigate.tree import ClipTree
from vsr1.toy.navigators import Spoken, call
from vsr1.video.clips import Clip

SECONDS = 720.0  # of a film: four parts of four parts
PARTS = ClipTree.of(SECONDS).level(2)  # that an agent asks about
OTHER = "other"  # begins the names of films that somebody else asks about


@dataclass(frozen=True)
class ToolWork:
    """What is played in a round, and how long its parts take."""

    prompts: int = 8
    group: int = 8
    calls: int = 4  # of an episode, before its answer
    reply_s: float = 0.5
    tool_s: float = 0.25
    at_once: int = 16  # replies of an engine at one time
    rounds: int = 3


@dataclass(frozen=True)
class WaitingFilms:
    """Films of any name, whose captioner takes a fixed time and writes down what it was asked."""

    tool_s: float
    log: Path
    model: str = "waiting"

    def digest(self, film: str) -> str:
        return film

    def tree(self, film: str) -> ClipTree:
        return ClipTree.of(SECONDS)

    def start(self) -> None:
        """Do nothing: there is nothing to load."""

    def answer(self, call: ToolCall) -> ToolResult:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{call.film} {call.tool} {call.node} {call.words}\n")
        time.sleep(self.tool_s)
        return ToolResult(f"part {call.node}")

    def read(self, video_id: str) -> Clip:
        raise NotImplementedError("nobody looks")


class WaitingEngine:
    """What a worker asks of a `PolicyEngine`: its replies ask about parts that their seed draws, then answer."""

    is_dead, weight_version = False, 0

    def __init__(self, work: ToolWork) -> None:
        self._work, self._places, self._end = work, asyncio.Semaphore(work.at_once), threading.Event()
        self.signs, self.inside = 0, 0

    @property
    def is_idle(self) -> bool:
        return self.inside == 0

    async def one_token(self) -> None:
        self.signs += 1

    async def generate(self, prompt: Prompt, *, seed: int, **rest: Any) -> Spoken:
        self.inside += 1
        async with self._places:
            await asyncio.sleep(self._work.reply_s)
        self.inside, self.signs = self.inside - 1, self.signs + 1
        done = sum(isinstance(part, list) for part in prompt.parts)
        node = random.Random(seed).choice(PARTS)
        text = call("next", f"caption({name_of(node)})") if done < self._work.calls else "<answer>red</answer>"
        ids = list(text.encode())
        return Spoken(text, token_ids=ids, logprobs=[-1.0] * len(ids), seed=seed)

    def outlived(self) -> None:
        self._end.wait()

    def shutdown(self) -> None:
        self._end.set()


class WaitingWorkerActor(RolloutWorkerActor):
    """A rollout worker with such an engine; calls about films of the split `without` it answers itself."""

    def __init__(self, config: Config, router: ToolRouterHandle, work: ToolWork) -> None:
        super().__init__(config, {"with": router, "without": router})
        self._work = work

    async def _start_engine(self) -> Any:
        return WaitingEngine(self._work)

    async def _use(self, split: str, call: ToolCall) -> ToolResult:
        return ToolResult(f"part {call.node}") if split == "without" else await super()._use(split, call)


def bench_tools(work: ToolWork) -> dict[str, Any]:
    """Return episodes a second without tools and with them, free and busy, their ratios, and calls made twice."""
    taken = Rounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Config.model_validate(
            {
                "environment": "navigate",
                "run_dir": folder / "run",
                "data": {"root": folder},
                "agent": {"refinement": "none"},
                "rollout": {"engine": {"max_num_seqs": work.at_once}},
                "cluster": {"num_cpus": 2},
            }
        )
        connect(config)
        try:
            asked = 0
            with _actors(config, work, folder / "calls") as (pump, router):
                for number in range(work.rounds + 1):
                    rounds = Rounds() if number == 0 else taken
                    for way in ("without", "free", "busy"):
                        at_once = config.navigate.pools.calls if way == "busy" else 0
                        with _others(router, at_once), rounds.time(way):
                            played = _play(pump, config, work, f"{way}-{number}")
                        asked += 0 if way == "without" else played
            made = Counter(line for line in (folder / "calls").read_text("utf-8").splitlines() if OTHER not in line)
        finally:
            ray.shutdown()
    episodes = work.prompts * work.group
    return asdict(work) | {
        **{f"{way}_per_s": episodes / taken.median(way) for way in taken.seconds},
        **{f"{way}_ratio": taken.ratio("without", way) for way in ("free", "busy")},
        "calls_asked": asked,
        "calls_made": made.total(),
        "calls_made_twice": sum(times - 1 for times in made.values()),
    }


def _play(pump: RolloutPump, config: Config, work: ToolWork, name: str) -> int:
    """Play the groups of a round, each about a film of its own; return how many calls were answered."""
    split = "without" if name.startswith("without") else "with"
    first: Any = NavigateTask(SampleId(""), "", "", SECONDS, "what colour?", float(work.calls), answer="red")
    tasks: list[Any] = []
    for number in range(work.prompts):
        film = f"{name}-{number}"
        tasks += group_of(replace(first, id=SampleId(film), question_id=film, film=film), work.group)
    outcomes = pump.play(split, tasks, config.agent, Sampling(1), lambda now: None)
    episodes: list[Any] = complete(list(outcomes))[0]
    return sum(turn.record.status == "ok" for episode in episodes for turn in episode.turns)


@contextmanager
def _actors(config: Config, work: ToolWork, log: Path) -> Iterator[tuple[RolloutPump, ToolRouterHandle]]:
    worker: Any = ray.remote(num_cpus=0, concurrency_groups={"health": 2})(WaitingWorkerActor)
    router = start_tools(config, WaitingFilms(work.tool_s, log), None)
    rewards = [RewardWorker.options(num_cpus=0).remote(environment_of(config).rewards(config), None)]
    watch = Watch(config.fleet)
    fleet = RolloutFleet(config, lambda name: worker.remote(config, router, work), lambda node: {}, watch)
    try:
        fleet.start()
        yield RolloutPump(fleet, rewards, config.rollout.deadline_s), router
    finally:
        fleet.stop()
        watch.stop()


@contextmanager
def _others(router: ToolRouterHandle, at_once: int) -> Iterator[None]:
    """Keep so many calls about other films in flight for a block."""
    end, numbers = threading.Event(), count()

    def ask() -> None:
        while not end.is_set():
            number = next(numbers)
            film = f"{OTHER}-{time.monotonic_ns()}-{number}"
            ray.get(router.use.remote(ToolCall(film, "caption", PARTS[number % len(PARTS)])))

    threads = [threading.Thread(target=ask) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
