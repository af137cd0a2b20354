"""Plays samples on the members of a fleet and scores what they return, each sample through the moves of a ledger.

Every task leaves exactly once, as a scored trajectory or as a failed sample with its reason. A sample that its member
lost is played again, on from its last finished turn; so is one whose attempt failed, a few times and after a pause,
unless the sample itself is at fault. A part that may come back is waited for; one that is gone for good ends the stage.
What finished together is scored together, by a reward worker that is idle.

A prompt that the ledger suspects of killing workers is played when nothing else is, so that nobody dies with it and no
death is put down to it that it did not cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray

from actors.handles import arrived
from actors.rewards import RewardWorkerHandle
from actors.rollout import Sampling
from pipelines.stage.fleet import Member
from pipelines.stage.plays import Outcome, Play
from vsr1.episode.environment import PromptError, ReplayError, finished_turn
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.episode.trajectory import Turn
from vsr1.ledger import POISON, Ledger
from vsr1.navigate.calls import ToolError
from vsr1.retrieval.request import RetrievalError, UnknownVideoError
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import ClipError

TICK_S = 0.25  # longest wait between two looks at the fleet
PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)  # before another attempt, after what others than the member did
OF_THE_SAMPLE = (PromptError, ClipError, UnknownVideoError)  # no other attempt would end otherwise
OF_OTHERS = (ray.exceptions.RayError, RetrievalError, ReplayError, ToolError)  # than the member that raised it
GONE = (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError)  # Ray will not start it again
GONE_ATTEMPTS = 2  # at a sample that misses such a part: its member may have been about to go with its node
MEMBER_ATTEMPTS = 3  # at a sample that members fail at
SCORING_ATTEMPTS = 40  # at a batch, each after the last pause but one at most


class Fleet(Protocol):
    """What the pump needs of a fleet."""

    def pick(self) -> Member | None:
        """Return the member that the next sample goes to, None where nobody has room now."""

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        """Take note that a sample from `pick` has left a member."""

    def serving(self) -> list[str]:
        """Return the names of the members that get samples."""

    def tick(self) -> None:
        """Do what is due; never blocks."""


@dataclass(frozen=True)
class Occupancy:
    """What goes on at one moment."""

    finished: int  # tasks of a play that have left
    waiting: int  # tasks that nobody plays yet
    rollout_workers: int  # that play an episode
    episodes: int
    reward_workers: int  # that score


@dataclass(eq=False)
class _Episode:
    play: Play
    task: SearchTask
    member: Member
    deadline: float
    known: int  # turns that were finished before it
    turns: list[Turn[SearchTurn]] = field(default_factory=list)


class RolloutPump:
    """Drives any number of plays at one time over one fleet; belongs to one thread.

    Args:
        deadline_s: seconds after which an episode is cancelled, and fails with `DeadlineError`.
    """

    def __init__(self, fleet: Fleet, rewards: list[RewardWorkerHandle], deadline_s: float) -> None:
        self._fleet, self._rewards, self._deadline_s = fleet, rewards, deadline_s
        self._plays: list[Play] = []
        self._episodes: dict[ray.ObjectRefGenerator, _Episode] = {}
        self._unscored: list[tuple[_Episode, SearchTrajectory]] = []
        self._scoring: dict[ray.ObjectRef, tuple[int, list[tuple[_Episode, SearchTrajectory]]]] = {}
        self._rested = [0.0] * len(rewards)  # when each takes a batch again
        self._scoring_faults = 0  # since the last batch that was scored
        self._alone: _Episode | None = None

    def open(self, split: str, agent: AgentConfig, sampling: Sampling, ledger: Ledger | None = None) -> Play:
        """Begin a play; without a ledger it gets one of its own, and issues what it is given."""
        play = Play(split, agent, sampling, ledger or Ledger())
        self._plays.append(play)
        return play

    def close(self, play: Play) -> None:
        """End a play: what is still played of it is cancelled."""
        self._plays.remove(play)
        for stream in [stream for stream, episode in self._episodes.items() if episode.play is play]:
            self._end(stream, cancel=True)
        self._unscored = [scored for scored in self._unscored if scored[0].play is not play]

    def play(
        self,
        split: str,
        tasks: Sequence[SearchTask],
        agent: AgentConfig,
        sampling: Sampling,
        watch: Callable[[Occupancy], None],
    ) -> Iterator[Outcome]:
        """Play tasks that no ledger has issued; yield outcomes in the order in which they come; errors as of `poll`.

        Args:
            watch: is told what goes on whenever that may have changed.
        """
        play = self.open(split, agent, sampling)
        sizes: dict[str, int] = {}
        for task in tasks:
            sizes[task.id.prompt] = max(sizes.get(task.id.prompt, 0), task.id.sample + 1)
        for prompt, size in sizes.items():
            play.ledger.issue(prompt, size, 0)
        for task in tasks:
            play.add(task)
        try:
            while play.finished < len(tasks):
                self.poll()
                watch(self.occupancy(play))
                while play.outcomes:
                    yield play.outcomes.popleft()
        finally:
            self.close(play)

    def occupancy(self, play: Play) -> Occupancy:
        """Return what goes on, of all plays where it does not say otherwise."""
        members = {episode.member.name for episode in self._episodes.values()}
        return Occupancy(play.finished, play.waiting, len(members), len(self._episodes), len(self._scoring))

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is played, scored or about to be."""
        return not (self._episodes or self._scoring or self._unscored or any(play.waiting for play in self._plays))

    def poll(self, timeout_s: float = TICK_S) -> None:
        """Give out what there is room for, then take what has come, after waiting for it at most so long.

        Raises:
            RayActorError, ActorUnschedulableError: an actor that a sample needs stays away, or is gone for good.
            FleetError: no member can be healed any more.
        """
        self._fleet.tick()
        self._give_out()
        self._score()
        references: list[Any] = [*self._episodes, *self._scoring]
        if not references:
            time.sleep(0 if self.is_idle else min(timeout_s, PAUSES_S[0]))
            return
        ray.wait(references, timeout=timeout_s)
        for reference in arrived(references):
            if reference in self._scoring:
                self._take_scores(reference)
            elif reference in self._episodes:  # a death before it may have ended it
                self._take_item(reference)
        self._cut_stragglers()

    def drop(self, play: Play, prompt: str, reason: str) -> None:
        """Take an issued prompt out of a play: its open samples are dropped and have no outcome."""
        play.withdraw(prompt)
        for stream, episode in list(self._episodes.items()):
            if episode.play is play and episode.task.id.prompt == prompt:
                self._end(stream, cancel=True)
        self._unscored = [one for one in self._unscored if one[0].play is not play or one[1].id.prompt != prompt]
        for entry in play.ledger.open:
            if entry.id.prompt == prompt:
                play.ledger.drop(entry.id, reason)

    def _give_out(self) -> None:
        if self._alone is not None:
            return
        suspects = any(play.ledger.suspects and any(play.due(suspects=True)) for play in self._plays)
        if suspects and self._episodes:
            return
        serving = self._fleet.serving()  # a group of who leaves goes on with others
        members = {one.task.id.prompt: one.member.name for one in self._episodes.values()}
        homes = {prompt: name for prompt, name in members.items() if name in serving}
        for play in self._plays:
            while any(play.due(suspects=suspects)):
                member = self._fleet.pick()
                if member is None:
                    return
                task = play.take(member.name, homes, suspects=suspects)
                homes[task.id.prompt] = member.name
                self._begin(play, task, member)
                if suspects:
                    [self._alone] = self._episodes.values()
                    return

    def _begin(self, play: Play, task: SearchTask, member: Member) -> None:
        entry = play.ledger[task.id]
        task = replace(task, id=entry.id)
        play.ledger.start(task.id, member.name)
        stream = member.handle.rollout.remote(play.split, task, play.agent, play.sampling, entry.turns)
        deadline = time.monotonic() + self._deadline_s
        self._episodes[stream] = _Episode(play, task, member, deadline, len(entry.turns))

    def _end(self, stream: ray.ObjectRefGenerator, *, cancel: bool = False, **outcome: bool) -> _Episode:
        """Take an episode from its member, which is told to end it or has done so."""
        episode = self._episodes.pop(stream)
        if cancel:
            ray.cancel(stream)
        if episode is self._alone:
            self._alone = None
        self._fleet.played(episode.member, **outcome)
        return episode

    def _take_item(self, stream: ray.ObjectRefGenerator) -> None:
        """Take the next turn of an episode, or its end."""
        episode = self._episodes[stream]
        try:
            item: Any = ray.get(next(stream))
        except ray.exceptions.RayTaskError as error:
            self._attempt_failed(stream, error)
        except ray.exceptions.RayActorError:
            self._member_died(episode.member)
        except (ray.exceptions.RayError, StopIteration) as error:  # what it sent is lost on the way, with its node
            self._try_again(self._end(stream, failed=True), "LostError", f"{type(error).__name__}: {error}", None)
        else:
            ledger, sample = episode.play.ledger, episode.task.id
            if isinstance(item, tuple):
                turn, soft_tokens = item
                episode.turns.append(turn)
                ledger.add_turn(sample, turn.number, finished_turn(turn, soft_tokens, turn.record.index_version))
                return
            self._end(stream)
            item.turns = episode.turns
            ledger.finish(sample)
            self._unscored.append((episode, item))

    def _attempt_failed(self, stream: ray.ObjectRefGenerator, error: ray.exceptions.RayTaskError) -> None:
        cause = error.cause
        episode = self._end(stream, failed=not isinstance(cause, (*OF_THE_SAMPLE, *OF_OTHERS)))
        if len(episode.turns) < episode.known and isinstance(cause, (ReplayError, RetrievalError)):
            # The turns that were there cannot be played again, as where their version of the corpus has gone.
            episode.play.ledger.lose([episode.task.id])
            episode.play.ledger.cut(episode.task.id)
            episode.play.add(episode.task, first=True)
            return
        self._try_again(episode, type(cause).__name__, str(cause), cause)

    def _try_again(self, episode: _Episode, reason: str, message: str, cause: BaseException | None) -> None:
        play, sample = episode.play, episode.task.id
        failures = play.fails(sample)
        if failures < _attempts(cause):
            play.ledger.lose([sample])
            play.add(episode.task, pause_s=PAUSES_S[failures - 1])
            return
        if isinstance(cause, (ray.exceptions.RayActorError, *GONE)):
            if not _is_gone(cause):
                cause.add_note(f"it was asked again for {sum(PAUSES_S):.0f} s, the time that it has to come back")
            raise cause
        self._fail(play, sample, reason, message)

    def _fail(self, play: Play, sample: SampleId, reason: str, message: str) -> None:
        play.ledger.drop(sample, reason, message)
        play.leave(FailedSample(sample, reason, message))

    def _member_died(self, member: Member) -> None:
        """Issue again all that a member played; a prompt that was alone with it may be poison."""
        streams = [stream for stream, episode in self._episodes.items() if episode.member is member]
        alone = self._alone
        episodes = [self._end(stream, died=True) for stream in streams]
        for play in {id(episode.play): episode.play for episode in episodes}.values():
            own = [episode for episode in episodes if episode.play is play]
            play.ledger.lose([episode.task.id for episode in own], killed=True)
            for episode in reversed(own):
                play.add(episode.task, first=True)
        if alone in episodes and alone is not None and alone.play.ledger.is_poison(alone.task.id.prompt):
            message = f"{member.name} died while it played nothing else, and others did before it"
            for task in alone.play.withdraw(alone.task.id.prompt):
                self._fail(alone.play, task.id, POISON, message)

    def _cut_stragglers(self) -> None:
        now = time.monotonic()
        for stream in [stream for stream, episode in self._episodes.items() if episode.deadline <= now]:
            episode = self._end(stream, cancel=True, failed=True)
            message = f"no end after {self._deadline_s:g} s (rollout.deadline_s) on {episode.member.name}"
            self._fail(episode.play, episode.task.id, "DeadlineError", message)

    def _score(self) -> None:
        now, busy = time.monotonic(), {worker for worker, _ in self._scoring.values()}
        idle = [i for i in range(len(self._rewards)) if i not in busy and self._rested[i] <= now]
        if self._unscored and idle:
            trajectories = [trajectory for _, trajectory in self._unscored]
            self._scoring[self._rewards[idle[0]].score.remote(trajectories)] = (idle[0], self._unscored)
            self._unscored = []

    def _take_scores(self, reference: ray.ObjectRef) -> None:
        worker, batch = self._scoring.pop(reference)
        batch = [one for one in batch if one[0].play in self._plays and one[1].id in one[0].play.ledger]
        try:
            outcomes = {(outcome.id.prompt, outcome.id.sample): outcome for outcome in ray.get(reference)}
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:  # another worker scores the batch, or the same once it is back
            self._scoring_faults += 1
            pause_s = PAUSES_S[min(self._scoring_faults, len(PAUSES_S)) - 1]
            self._rested[worker] = math.inf if _is_gone(error) else time.monotonic() + pause_s
            if self._scoring_faults == SCORING_ATTEMPTS or min(self._rested) == math.inf:
                raise
            self._unscored = batch + self._unscored
            return
        self._scoring_faults = 0
        for episode, trajectory in batch:
            play, outcome = episode.play, outcomes[trajectory.id.prompt, trajectory.id.sample]
            if isinstance(outcome, FailedSample):
                self._fail(play, outcome.id, outcome.reason, outcome.message)
            else:
                play.ledger.reward(outcome.id)
                play.leave(outcome)


def _is_gone(error: BaseException | None) -> bool:
    """Tell whether an actor will not be started again: it has no restarts left, or its node has left the cluster."""
    return isinstance(error, GONE) and not getattr(error, "preempted", False)


def _attempts(cause: BaseException | None) -> int:
    """Return how often a sample is played that fails for this reason, None where what it returned was lost."""
    if isinstance(cause, OF_THE_SAMPLE):
        return 1
    if _is_gone(cause):
        return GONE_ATTEMPTS
    return len(PAUSES_S) + 1 if cause is None or isinstance(cause, OF_OTHERS) else MEMBER_ATTEMPTS
