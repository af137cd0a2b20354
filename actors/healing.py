"""Learner ranks that go on after one of them died or hung: all start again and repeat what the last copy does not have.

Every few optimiser steps each rank writes its part of the state (trained weights, optimiser, generators) to memory and
returns it, so that it lies in the object store and outlives the rank. After a fault all ranks start again, take the
last copy and repeat the steps since, on the same batches: the bits of the weights are those of a run without a fault.
Nothing else is started again, and a batch is never trained on by fewer ranks.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray

from actors.clips import ClipStores
from actors.learner import LearnerGroup, LearnerRankActor, RankError
from actors.rollout import SHARED_MEMORY
from vsr1.config import Config
from vsr1.rl.batch import Example
from vsr1.runs.events import WriteEvent, write_nothing
from vsr1.seats import of_last_hour

SHARE = 0.05  # of the learner's time that copies take, where `fleet.snapshot_every` is left empty
Answer = TypeVar("Answer")
Parts = dict[str, bytes]  # files of a state, by their path


def copy_out(rank: LearnerRankActor) -> tuple[int, Parts]:
    """Return the bytes of a rank's part of the state, and the part; all ranks do so at one time."""
    with tempfile.TemporaryDirectory(prefix="vsr1-copy-", dir=SHARED_MEMORY) as name:
        folder = Path(name)
        rank.save_state(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        part = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        return sum(map(len, part.values())), part


def copy_in(rank: LearnerRankActor, *parts: Parts) -> None:
    """Let a new rank take the state that the parts of all ranks are."""
    with tempfile.TemporaryDirectory(prefix="vsr1-copy-", dir=SHARED_MEMORY) as name:
        for part in parts:
            for path, content in part.items():
                file = Path(name) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        rank.load_state(Path(name))


class HealingLearners(LearnerGroup):
    """A learner group whose calls outlive its ranks.

    Args:
        guard: gets name and handle of each rank that starts, and None for the handle before the group ends it.
        write: writes the events of its healings.
    """

    def __init__(
        self,
        config: Config,
        clips: ClipStores,
        logs: Path | None = None,
        guard: Callable[[str, Any], None] = lambda name, rank: None,
        write: WriteEvent = write_nothing,
    ) -> None:
        super().__init__(config, clips, logs)
        self._guard, self._write = guard, write
        self._copy: list[ray.ObjectRef] = []  # the part of each rank
        self._since: list[tuple[list[Example], float]] = []  # steps that the copy does not have
        self._copied_at, self._copy_s = 0.0, 0.0
        self._faults: deque[float] = deque()  # when
        self._is_over = False

    def _start(self) -> None:
        super()._start()
        for rank, member in enumerate(self.members):
            self._guard(f"learner-{rank}", member)

    def close(self) -> None:
        self._is_over = True
        for rank in range(self.ranks):
            self._guard(f"learner-{rank}", None)
        super().close()

    def step(self, examples: list[Example], learning_rate: float) -> dict[str, float]:
        """Take a step as `LearnerGroup.step`, and if ranks die or hang, take it again from the last copy.

        Raises:
            RankError: `fleet.restarts_per_hour` is spent.
        """
        if self._is_copied and not self._copy:
            self._healed(self._take_copy)
        numbers = self._healed(lambda: super(HealingLearners, self).step(examples, learning_rate))
        copy_s = 0.0
        if self._is_copied:
            self._since.append((examples, learning_rate))
            if self._is_due():
                self._healed(self._take_copy)
                copy_s = self._copy_s
        return numbers | {"seconds/learn/copy": copy_s}

    def logprobs(self, examples: list[Example]) -> list[list[float]]:
        return self._healed(lambda: super(HealingLearners, self).logprobs(examples))

    def weights(self) -> ray.ObjectRef:
        return self._healed(lambda: self._whole(super(HealingLearners, self).weights()))

    def share(self) -> ray.ObjectRef:
        return self._healed(lambda: self._whole(super(HealingLearners, self).share()))

    def save(self, folder: Path) -> None:
        self._healed(lambda: super(HealingLearners, self).save(folder))

    def save_state(self, folder: Path) -> None:
        self._healed(lambda: super(HealingLearners, self).save_state(folder))

    def load_state(self, folder: Path) -> None:
        def load() -> None:
            super(HealingLearners, self).load_state(folder)
            if self._is_copied:
                self._take_copy()

        self._healed(load)

    @property
    def _is_copied(self) -> bool:
        return self._config.fleet.snapshot_every != 0

    def _is_due(self) -> bool:
        every = self._config.fleet.snapshot_every
        if every is not None:
            return len(self._since) >= every
        return SHARE * (time.monotonic() - self._copied_at) >= self._copy_s

    def _take_copy(self) -> None:
        began = time.monotonic()
        answers = [rank.__ray_call__.options(num_returns=2).remote(copy_out) for rank in self.members]
        self._all([size for size, _ in answers])
        self._copy, self._since = [part for _, part in answers], []
        self._copied_at = time.monotonic()
        self._copy_s = self._copied_at - began

    def _whole(self, answer: ray.ObjectRef) -> ray.ObjectRef:
        """Return the answer of rank 0 when it is there; its death on the way would look like that of who takes it."""
        self._all([rank.node.remote() for rank in self.members])
        return answer

    def _healed(self, call: Callable[[], Answer]) -> Answer:
        fault: RankError | None = None
        began, parts = 0.0, {}
        while True:
            try:
                if not self.members:
                    parts = self._come_back()
                answer = call()
            except RankError as error:
                if fault is None:
                    fault, began = error, time.monotonic()
                self._count(error)
                super().close()
                continue
            if fault is not None:
                parts["all"] = time.monotonic() - began
                self._write(
                    "healed", role="learner", member="learner", reason=str(fault).splitlines()[0], seconds=parts
                )
            return answer

    def _count(self, error: RankError) -> None:
        """Let an error through where ranks may not start again."""
        now = time.monotonic()
        self._faults.append(now)
        faults = of_last_hour(self._faults, now)
        if self._is_over or not self._is_copied or faults > self._config.fleet.restarts_per_hour:
            raise error

    def _come_back(self) -> dict[str, float]:
        """Start all ranks, let them take the copy and repeat the steps since; return the seconds of each."""
        if self._is_over:
            raise RankError("the learner was ended")
        began = time.monotonic()
        self._start()
        started = time.monotonic()
        if self._copy:
            self._all([rank.__ray_call__.remote(copy_in, *self._copy) for rank in self.members])
        restored = time.monotonic()
        for examples, rate in self._since:
            super().step(examples, rate)
        return {"start": started - began, "restore": restored - started, "repeat": time.monotonic() - restored}
