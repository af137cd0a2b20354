"""A training at a size that nobody here has: the real ledger, journal and fleet driven by a simulated clock.

Engines, learner and nodes are costs (`bench.cost`); every sample goes through `vsr1.ledger`, every move is a frame of a
real journal, and members start, take weights, die and leave through `vsr1.fleet`. What the controller's own code takes
is measured on this machine, so the seconds of the cluster and the processor seconds of its driver come from one run.
"""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench.cost import PROMPT_TOKENS, WIDTH, Costs
from vsr1.episode.environment import FinishedTurn
from vsr1.episode.sample import SampleId
from vsr1.fleet import Fleet
from vsr1.footprint import index_gib
from vsr1.ledger import Entry, Frame, Ledger
from vsr1.runs.journal import Journal
from vsr1.settings.parts import FleetConfig
from vsr1.video.clips import ClipReference

TICK_S = 0.25  # between two looks at the fleet, as in the pump
HOUR_S = 3600.0
EVERY = 16  # prompts, of one of which the turns are written: a turn with latents has 131 kB


@dataclass(frozen=True)
class ScaleWork:
    """What is simulated.

    Attributes:
        engines, ranks: GPUs that play and that learn; the rest of `gpus` searches.
        refined: share of turns after which another follows, up to three turns.
        deaths: of a member in an hour, whose process ends.
        preemptions: of a member in an hour, whose node says so and leaves.
    """

    gpus: int = 1000
    engines: int = 480
    ranks: int = 512
    videos: int = 10_000_000
    prompts: int = 2048
    group: int = 8
    staleness: int = 2
    at_once: int = 128
    steps: int = 4
    refined: float = 0.5
    deaths: float = 0.01
    preemptions: float = 0.02
    seed: int = 0


def bench_scale(work: ScaleWork) -> dict[str, Any]:
    """Simulate the steps and return seconds, shares, what became of the samples and where each part is full."""
    with tempfile.TemporaryDirectory() as folder:
        run = Simulation(work, Costs(), Journal(Path(folder) / "ledger.journal"))
        run.play()
        size = (Path(folder) / "ledger.journal").stat().st_size
    return asdict(work) | run.figures(size)


class Simulation:
    """A clock, a queue of what happens when, and the state machines that it is told to."""

    def __init__(self, work: ScaleWork, costs: Costs, journal: Journal) -> None:
        self._work, self._costs, self._random = work, costs, random.Random(work.seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._journal, self._turns = journal, finished_turns(work.seed)
        self.ledger = Ledger(self._write)
        config = FleetConfig(drain_s=60, restarts_per_hour=60)
        self.fleet = Fleet(config, work.at_once, lambda: self.now)
        self.fleet.scale(work.engines)
        self._waiting: deque[SampleId] = deque()
        self._playing: dict[str, dict[tuple[str, int], int]] = {}  # by member, the attempt of each sample
        self._left: dict[str, int] = {}  # samples of open prompts that are not rewarded
        self._ready: deque[str] = deque()  # prompts that can be learned
        self._issued, self.step, self._learning = 0, 0, False
        self.processor: dict[str, float] = {}  # seconds of this machine, by part
        self.turns, self.samples, self.busy, self.learned_s, self.steps_at = 0, 0, 0.0, 0.0, [0.0]
        self.lost = Counted()

    def play(self) -> None:
        """Take the steps."""
        self._at(0.0, self._look)
        while self.step < self._work.steps:
            self.now, _, event = heapq.heappop(self._queue)
            event()

    def _write(self, frame: Frame) -> None:
        """Write a frame; of turns, which are large, those of one prompt in `EVERY`."""
        is_turn = frame["kind"] == "turn"
        if is_turn and int(frame["prompt"].split("/")[1]) % EVERY:
            return
        with self._timed("journal, turns" if is_turn else "journal"):
            self._journal.append(frame)

    def _at(self, after_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + after_s, next(self._order), event))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.processor[part] = self.processor.get(part, 0.0) + time.process_time() - began

    def _look(self) -> None:
        """Do what the driver does in each of its rounds."""
        with self._timed("fleet, orders"):
            orders = self.fleet.orders()
        for order in orders:
            name = order.member
            match order.do:
                case "start" | "restart":
                    self._playing[name] = {}
                    self._at(self._costs.start_s * self._random.uniform(0.8, 1.2), partial(self._up, name))
                case "pull":
                    wait = self._costs.weights_s() + self._costs.play_s(self._work.at_once) / 2  # replies that run end
                    version = self.fleet.version
                    self._at(wait, partial(self.fleet.holds, name, version, str(version)))
                case "probe":
                    self._at(0.05, partial(self.fleet.answered, name))
                case "end":
                    self._take_back(name, killed=False)
        self.fleet.events.clear()
        self._issue()
        self._give_out()
        self._at(TICK_S, self._look)

    def _up(self, name: str) -> None:
        self.fleet.started(name)
        work = self._work
        for rate, event in ((work.deaths, self._dies), (work.preemptions, self._leaves)):
            if rate:
                self._at(self._random.expovariate(rate / HOUR_S), partial(event, name))

    def _dies(self, name: str) -> None:
        self._take_back(name, killed=True)
        self.fleet.lost(name, "its process ended")

    def _leaves(self, name: str) -> None:
        self.lost.preemptions += 1
        self.fleet.drain(name, "its node leaves", limit_s=60.0, replace=True)

    def _take_back(self, name: str, *, killed: bool) -> None:
        """Issue again what a member played."""
        playing, self._playing[name] = self._playing.get(name, {}), {}
        self.lost.deaths += killed
        self.lost.samples += len(playing)
        samples = [SampleId(prompt, number, attempt) for (prompt, number), attempt in playing.items()]
        with self._timed("ledger"):
            self.ledger.lose(samples, killed=killed)
        for sample in samples:
            self.fleet.taken_back(name)
            self._waiting.appendleft(sample)

    def _issue(self) -> None:
        """Give out prompts: `staleness` + 1 steps' at most that are not learned."""
        work = self._work
        most = (self.step + work.staleness + 1) * work.prompts
        while self._issued < min(most, work.steps * work.prompts):
            prompt = f"0/{self._issued}/q"
            with self._timed("ledger"):
                entries = self.ledger.issue(prompt, work.group, self.step)
            self._left[prompt] = work.group
            self._waiting.extend(entry.id for entry in entries)
            self._issued += 1

    def _give_out(self) -> None:
        while self._waiting:
            with self._timed("fleet, pick"):
                name = self.fleet.pick()
            if name is None:
                return
            entry = self.ledger[self._waiting.popleft()]
            with self._timed("ledger"):
                self.ledger.start(entry.id, name)
            with self._timed("fleet, pick"):
                self.fleet.given(name)
            self._playing[name][entry.id.prompt, entry.id.sample] = entry.id.attempt
            self._turn(name, entry, entry.id.attempt)

    def _turn(self, name: str, entry: Entry, attempt: int) -> None:
        load = len(self._playing[name])
        seconds = self._costs.play_s(load)
        self.busy += seconds / load
        self._at(seconds, lambda: self._turned(name, entry, attempt))

    def _turned(self, name: str, entry: Entry, attempt: int) -> None:
        key = entry.id.prompt, entry.id.sample
        if self._playing[name].get(key) != attempt:
            return  # it was lost meanwhile
        self.turns += 1
        with self._timed("ledger"):
            is_refined = len(entry.turns) < 2 and self._random.random() < self._work.refined
            self.ledger.add_turn(entry.id, len(entry.turns) + 1, self._turns[is_refined])
        if is_refined:
            self._turn(name, entry, attempt)
            return
        del self._playing[name][key]
        with self._timed("fleet, pick"):
            self.fleet.played(name)
        with self._timed("ledger"):
            self.ledger.finish(entry.id)
            self.ledger.reward(entry.id)
        self.samples += 1
        self._left[entry.id.prompt] -= 1
        if not self._left[entry.id.prompt]:
            self._ready.append(entry.id.prompt)
            self._learn()

    def _learn(self) -> None:
        work = self._work
        if self._learning or len(self._ready) < work.prompts:
            return
        self._learning = True
        prompts = [self._ready.popleft() for _ in range(work.prompts)]
        turns = self.turns / max(1, self.samples)
        seconds = self._costs.learn_s(work.prompts, work.group, turns, work.ranks)
        self.learned_s += seconds
        self._at(seconds, lambda: self._learned(prompts))

    def _learned(self, prompts: list[str]) -> None:
        self.step, self._learning = self.step + 1, False
        samples = [SampleId(prompt, number, 0) for prompt in prompts for number in range(self._work.group)]
        with self._timed("ledger"):
            self.ledger.train(samples, self.step)
        with self._timed("fleet, push"):
            self.fleet.push(self.step)
        self.steps_at.append(self.now)
        self._learn()

    def figures(self, journal_bytes: int) -> dict[str, Any]:
        """Return what came out, after `play`."""
        work, costs = self._work, self._costs
        steady = self.steps_at[-1] - self.steps_at[1]  # without the start of the engines
        step_s = steady / (work.steps - 1)
        samples_s = work.prompts * work.group / step_s
        queries_s = samples_s * self.turns / self.samples
        self.processor["ledger"] -= self.processor["journal"] + self.processor["journal, turns"]
        self.processor["journal, turns"] *= EVERY
        used = {part: seconds / self.samples for part, seconds in sorted(self.processor.items())}
        own_s = sum(used.values())
        return {
            "first_step_s": self.steps_at[1], "step_s": step_s, "samples_per_second": samples_s,
            "learner_share": self.learned_s / work.steps / step_s,
            "samples": dict(self.ledger.closed), "open_samples": len(self.ledger.open),
            "lost_and_played_again": asdict(self.lost), "suspects": len(self.ledger.suspects),
            "controller_us_a_sample": {part: 1e6 * seconds for part, seconds in used.items()},
            "controller_cores": samples_s * own_s, "driver_cores_as_measured": samples_s * costs.driver_s,
            "samples_per_second_of_one_driver": {"state machines": 1 / own_s, "as measured": 1 / costs.driver_s},
            "journal_mb_s": EVERY * journal_bytes / self.samples * samples_s / 1e6,
            "queries_per_second": queries_s, "index_gib": index_gib(work.videos, WIDTH),
            "search_cores": costs.search_cores(queries_s, work.videos),
            "search_gpus": costs.search_gpus(queries_s, work.videos),
            "search_gpus_there": work.gpus - work.engines - work.ranks,
        }  # fmt: skip


@dataclass
class Counted:
    """What faults have done."""

    deaths: int = 0
    preemptions: int = 0
    samples: int = 0


def finished_turns(seed: int) -> tuple[FinishedTurn, FinishedTurn]:
    """Return a turn as large as one of the 2B policy, without a refinement and with one."""
    rng = np.random.default_rng(seed)
    latents, soft = (rng.normal(size=(8, WIDTH)).astype(np.float32) for _ in range(2))
    words = rng.integers(0, 150_000, 96).tolist()
    parts: dict[str, Any] = {
        "prompt_token_ids": rng.integers(0, 150_000, PROMPT_TOKENS).tolist(), "token_ids": words,
        "logprobs": rng.normal(size=96).tolist(), "text": " ".join(map(str, words)), "finish_reason": "stop",
        "seed": 1, "weight_version": 1, "clips": [ClipReference("a-video", "0" * 64)],
    }  # fmt: skip
    refined = FinishedTurn(**parts, latents=latents, soft_tokens=soft)
    return replace(refined, latents=None, soft_tokens=None), refined
