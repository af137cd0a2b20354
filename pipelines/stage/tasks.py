"""Tasks of a split: the training records as a stream without end, and as groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.environments.spec import HELPED, Rows
from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.rl.success import SuccessEstimates
from vsr1.search.record import SearchTask


class PromptStream(Iterator[SearchTask]):
    """The queries of the training split without end, each epoch in an order of its own.

    The order of an epoch follows from the run's seed and the epoch's number alone, so `position`, the number of prompts
    that were taken, is all that a resumed run needs. A prompt id is `<epoch>/<row>/<query id>` and never comes twice.
    With `grpo.draw: success` each prompt is an epoch of its own and follows from the estimates as well.

    With `grpo.first_video: recorded` each task names the video of its first turn, and the augmented records take part,
    which name the right one; with `balanced` only these name it, with `hopeless` the prompts that hardly ever succeed.

    Args:
        choose: returns those of the GRPO records that take part.
        success: what the run that goes on had observed.

    Raises:
        FileNotFoundError: the GRPO records are missing.
    """

    def __init__(
        self,
        config: Config,
        position: int = 0,
        choose: Callable[[Rows], Rows] = list,
        success: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._config, self._environment = config, environment_of(config)
        self._rows = choose(self._environment.training_rows(config))
        self._names = [str(row) for row in range(len(self._rows))]
        self.position, self.success = position, SuccessEstimates(success)
        self._epoch, self._order = -1, list[int]()

    def __next__(self) -> SearchTask:
        epoch, row = self._drawn() if self._config.grpo.draw == "success" else self._in_order()
        self.position += 1
        is_helped = self._config.grpo.first_video == "hopeless" and self.success.is_hopeless(self._names[row])
        return self._task(epoch, row, is_helped)

    def learned(self, trajectories: Sequence[Any]) -> None:
        """Observe the samples of groups that were learned."""
        groups: dict[str, list[bool]] = {}
        for one in trajectories:
            groups.setdefault(one.id.prompt, []).append(self._environment.succeeded(one))
        for prompt, successes in groups.items():
            self.success.observe(prompt.split("/", maxsplit=2)[1], sum(successes), len(successes))

    def _in_order(self) -> tuple[int, int]:
        """Return epoch and row of the next prompt."""
        epoch, place = divmod(self.position, len(self._rows))
        if epoch != self._epoch:
            order = list(range(len(self._rows)))
            random.Random(hashed_seed(self._config.seed, "order of prompts", epoch)).shuffle(order)
            self._epoch, self._order = epoch, order
        return epoch, self._order[place]

    def _drawn(self) -> tuple[int, int]:
        """Return the same of a prompt that is drawn by its success."""
        chance = random.Random(hashed_seed(self._config.seed, "drawn prompt", self.position))
        return self.position, self.success.draw(self._names, chance.random())

    def task(self, prompt: str) -> SearchTask:
        """Return the task of a prompt id that was given out; the position stays."""
        epoch, row, query_id = prompt.split("/", maxsplit=2)
        return self._task(int(epoch), int(row), query_id.endswith(HELPED))

    def _task(self, epoch: int, row: int, is_helped: bool) -> SearchTask:
        task: SearchTask = self._environment.training_task(self._rows[row], self._config, f"{epoch}/{row}/", is_helped)
        return task


def training_tasks(config: Config) -> list[SearchTask]:
    """Return the tasks of `PromptStream`, each once, with its query id as prompt id; errors as of `PromptStream`."""
    environment = environment_of(config)
    return [environment.training_task(row, config, "", False) for row in environment.training_rows(config)]


def group_of(task: SearchTask, size: int) -> list[SearchTask]:
    """Return the G samples of a prompt."""
    return [replace(task, id=SampleId(task.id.prompt, sample)) for sample in range(size)]
