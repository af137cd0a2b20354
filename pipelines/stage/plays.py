"""A set of samples that is played, as the training or an evaluation: those that wait, and what has become of others."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actors.rollout import Sampling
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.ledger import Ledger
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

Outcome = SearchTrajectory | FailedSample


@dataclass(eq=False)
class Play:
    """Samples that are played over one split, in the order in which they were added."""

    split: str
    agent: AgentConfig
    sampling: Sampling
    ledger: Ledger
    outcomes: deque[Outcome] = field(default_factory=deque)
    finished: int = 0
    _waiting: deque[tuple[float, SearchTask]] = field(default_factory=deque)  # not before a time
    _failures: Counter[tuple[str, int]] = field(default_factory=Counter)  # of attempts, by sample

    def add(self, task: SearchTask, *, first: bool = False, pause_s: float = 0.0) -> None:
        """Add a sample that its ledger has issued."""
        entry = time.monotonic() + pause_s, task
        if first:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)

    def due(self, *, suspects: bool) -> Iterator[tuple[int, SearchTask]]:
        """Yield the tasks that may begin now, of suspects or of others, with their places among all that wait."""
        now, suspected = time.monotonic(), self.ledger.suspects
        for place, (earliest, task) in enumerate(self._waiting):
            if earliest <= now and (task.id.prompt in suspected) == suspects:
                yield place, task

    def take(self, member: str, homes: Mapping[str, str], *, suspects: bool) -> SearchTask:
        """Take the task that a member begins next: one that is due, of a group that nobody else plays if there is one.

        The samples of a group look at the same clips, which an engine encodes once.

        Args:
            homes: the member that plays samples of a prompt, by prompt.

        Raises:
            StopIteration: none is due.
        """
        first, _ = next(self.due(suspects=suspects))
        own = (place for place, task in self.due(suspects=suspects) if homes.get(task.id.prompt, member) == member)
        place = next(own, first)
        _, task = self._waiting[place]
        del self._waiting[place]
        return task

    @property
    def waiting(self) -> int:
        """Return how many tasks nobody plays yet."""
        return len(self._waiting)

    def withdraw(self, prompt: str) -> list[SearchTask]:
        """Take the tasks of a prompt out of those that wait."""
        tasks = [task for _, task in self._waiting if task.id.prompt == prompt]
        self._waiting = deque(entry for entry in self._waiting if entry[1].id.prompt != prompt)
        return tasks

    def fails(self, sample: SampleId) -> int:
        """Count a failed attempt and return how many there were."""
        key = sample.prompt, sample.sample
        self._failures[key] += 1
        return self._failures[key]

    def leave(self, outcome: Outcome) -> None:
        """Add an outcome, which no other of its sample follows."""
        self.finished += 1
        self._failures.pop((outcome.id.prompt, outcome.id.sample), None)
        self.outcomes.append(outcome)
