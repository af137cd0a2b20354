"""What becomes of every sample of a training: each is trained once, or dropped for a reason, and none vanishes.

    issued ──► running ──► finished ──► rewarded ──► trained
      ▲           │ lost
      └───────────┘                any of the first four ──► dropped

A move that is not drawn raises. A sample that was lost with its rollout worker is issued again under the same prompt
and number, one attempt further, and keeps its finished turns. Nothing happens before it is written: every move is a
frame that `write` takes first, so what a killed driver's frames say (`Past`) is never less than what it did. Weights
that were not saved are lost with their driver, so frames do not say for good that a sample was trained: it is open
again in the run that goes on, and the log of trained trajectories is cut back to the saved step with it.

A prompt that kills the workers that play it must not do so for ever. Deaths count for all prompts that were there. One
death before the last that it may have, a prompt is a suspect and played alone; with the next one it is poison. A prompt
of which all samples that were lost in its deaths have come to their end since is cleared of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vsr1.episode.environment import FinishedTurn
from vsr1.episode.sample import SampleId

State = Literal["issued", "running", "finished", "rewarded", "trained", "dropped"]
Frame = dict[str, Any]
Key = tuple[str, int]  # prompt id and number of the sample

MOVES: dict[State, set[State]] = {
    "issued": {"running", "dropped"},
    "running": {"issued", "finished", "dropped"},
    "finished": {"rewarded", "dropped"},
    "rewarded": {"trained", "dropped"},
}
POISON = "poison"
CHOSEN = {"equal", "lost group", "stale"}  # reasons that follow from other samples: the run that goes on decides anew


class LedgerError(RuntimeError):
    """A move that a sample cannot make; the message names the sample, its state and the move."""


@dataclass
class Entry:
    """An open sample, neither trained nor dropped; `id.attempt` counts how often it was lost."""

    id: SampleId
    step: int  # of the learner, when it was issued
    state: State = "issued"
    member: str = ""  # that plays it
    turns: list[FinishedTurn] = field(default_factory=list)


@dataclass
class Memory:
    """What frames say of a sample that a run before this one has issued."""

    attempt: int = 0
    turns: list[FinishedTurn] = field(default_factory=list)
    failure: tuple[str, str] | None = None  # reason and message with which it was dropped


@dataclass
class Past:
    """What the frames of a run say, read in their order: those of a snapshot first, then those written after it."""

    open: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the snapshot: size and step of each prompt
    closed: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    samples: dict[Key, Memory] = field(default_factory=dict)

    @classmethod
    def read(cls, frames: Iterable[Frame]) -> Past:
        """Return what frames say."""
        past = cls()
        for frame in frames:
            past._take(frame)
        return past

    def _take(self, frame: Frame) -> None:
        if frame["kind"] == "snapshot":
            self.open = {prompt: (size, step) for prompt, size, step in frame["open"]}
            self.closed, self.kills = Counter(frame["closed"]), Counter(frame["kills"])
        elif frame["kind"] == "killed":
            self.kills.update(frame["prompts"])
        elif frame["kind"] == "cleared":
            del self.kills[frame["prompt"]]
        if "sample" not in frame:
            return
        memory = self.samples.setdefault((frame["prompt"], frame["sample"]), Memory())
        match frame["kind"]:
            case "running":
                memory.attempt = frame["attempt"] + 1  # of the next one
            case "turn":
                memory.turns[frame["number"] - 1 :] = [frame["turn"]]
            case "cut":
                del memory.turns[frame["turns"] :]
            case "dropped" if frame["reason"] not in CHOSEN:
                memory.failure = (frame["reason"], frame["message"])


def _unwritten(frame: Frame) -> None:
    """Take the frames of a ledger that nobody goes on from, as of an evaluation."""


class Ledger:
    """Belongs to one thread.

    Args:
        write: is given each frame before what it says happens; if it raises, that does not happen.
        past: of the run that goes on.
        kills: deaths of workers that make a prompt poison, at least two.
    """

    def __init__(self, write: Callable[[Frame], None] = _unwritten, past: Past | None = None, kills: int = 3) -> None:
        self._write, self._past, self._limit = write, past or Past(), kills
        self._entries: dict[Key, Entry] = {}
        self._sizes: dict[str, int] = {}  # of open prompts, in the order of their issue
        self._ended: set[str] = set()  # prompts, of this run
        self._failures: dict[Key, tuple[str, str]] = {}  # of samples of open prompts
        self.closed = Counter(self._past.closed)  # samples by "trained" and by the reasons of drops
        self._kills = Counter(self._past.kills)
        self._victims: dict[str, set[int]] = {}  # samples that were lost with a death and have not ended since
        self.suspects = {prompt for prompt, count in self._kills.items() if count >= kills - 1}  # are played alone

    @property
    def open(self) -> list[Entry]:
        """Return the open samples in the order of their issue."""
        return list(self._entries.values())

    def __contains__(self, sample: SampleId) -> bool:
        """Tell whether a sample is open."""
        return (sample.prompt, sample.sample) in self._entries

    def __getitem__(self, sample: SampleId) -> Entry:
        """Return an open sample, whatever attempt is asked for.

        Raises:
            LedgerError: it is not open.
        """
        try:
            return self._entries[sample.prompt, sample.sample]
        except KeyError:
            raise LedgerError(f"sample {sample.sample} of prompt {sample.prompt!r} is not open") from None

    def issue(self, prompt: str, size: int, step: int, weights: int | None = None) -> list[Entry]:
        """Open the samples of a prompt, with what a run before this one knew of them.

        Of the turns that it knew only those stay whose weights are there: older than the present ones in prompts of
        the snapshot, the present ones in others. What failed for good before fails again: `failure_of` says so.

        Args:
            step: that the learner has taken; a prompt of the snapshot keeps its own.
            weights: version of the present ones, where that is not `step`.

        Raises:
            LedgerError: the prompt was issued already.
        """
        if prompt in self._sizes or prompt in self._ended:
            raise LedgerError(f"prompt {prompt!r} was issued already")
        newest = step if weights is None else weights
        oldest = 0 if prompt in self._past.open else newest
        _, issued = self._past.open.pop(prompt, (size, step))
        self._write({"kind": "issued", "prompt": prompt, "size": size, "step": issued})
        self._sizes[prompt] = size
        if self._kills[prompt]:  # in a run before this one, which has not cleared it
            self._victims[prompt] = set(range(size))
        entries = []
        for sample in range(size):
            memory = self._past.samples.get((prompt, sample), Memory())
            fresh = 0
            while fresh < len(memory.turns) and oldest <= memory.turns[fresh].weight_version <= newest:
                fresh += 1
            entry = Entry(SampleId(prompt, sample, memory.attempt), issued, turns=memory.turns[:fresh])
            if fresh < len(memory.turns):
                self._note(entry, "cut", turns=fresh)
            self._entries[prompt, sample] = entry
            entries.append(entry)
        return entries

    def failure_of(self, sample: SampleId) -> tuple[str, str] | None:
        """Return reason and message with which a run before this one has dropped a sample for good."""
        memory = self._past.samples.get((sample.prompt, sample.sample))
        return memory.failure if memory else None

    def start(self, sample: SampleId, member: str) -> None:
        """Give a sample to a member, which plays it on from its finished turns."""
        entry = self._moving(sample, "running")
        self._note(entry, "running", attempt=entry.id.attempt, member=member)
        entry.state, entry.member = "running", member

    def add_turn(self, sample: SampleId, number: int, turn: FinishedTurn) -> None:
        """Keep a finished turn (from 1) of a running sample; one that was there already changes nothing.

        Raises:
            LedgerError: a turn between is missing.
        """
        entry = self[sample]
        if entry.state != "running" or number > len(entry.turns) + 1:
            raise LedgerError(f"{entry.id}, which is {entry.state}, has {len(entry.turns)} turns, so none of {number}")
        if number == len(entry.turns) + 1:
            self._note(entry, "turn", number=number, turn=turn)
            entry.turns.append(turn)

    def lose(self, samples: Iterable[SampleId], *, killed: bool = False) -> None:
        """Issue running samples again, after one event has ended their attempts.

        Args:
            killed: whether their member died.
        """
        entries = [self._moving(sample, "issued") for sample in samples]
        if killed:
            prompts = list(dict.fromkeys(entry.id.prompt for entry in entries))
            self._write({"kind": "killed", "prompts": prompts})
            self._kills.update(prompts)
            for entry in entries:
                self._victims.setdefault(entry.id.prompt, set()).add(entry.id.sample)
            self.suspects.update(prompt for prompt in prompts if self._kills[prompt] >= self._limit - 1)
        for entry in entries:
            self._note(entry, "lost", attempt=entry.id.attempt)
            entry.state, entry.member = "issued", ""
            entry.id = replace(entry.id, attempt=entry.id.attempt + 1)

    def cut(self, sample: SampleId) -> None:
        """Forget the finished turns of an issued sample: it is played from its first turn."""
        entry = self[sample]
        self._note(entry, "cut", turns=0)
        entry.turns = []

    def finish(self, sample: SampleId) -> None:
        """Note that an episode has ended; the last one of a prompt that deaths had ended clears it of them."""
        self._advance(sample, "finished")
        victims = self._victims.get(sample.prompt, set())
        if victims == {sample.sample}:
            self._write({"kind": "cleared", "prompt": sample.prompt})
            del self._kills[sample.prompt]
            self.suspects.discard(sample.prompt)
        victims.discard(sample.sample)

    def reward(self, sample: SampleId) -> None:
        """Note that a finished sample is scored."""
        self._advance(sample, "rewarded")

    def train(self, samples: Iterable[SampleId], step: int) -> None:
        """Close samples that a step has learned from."""
        for sample in samples:
            self._note(self._moving(sample, "trained"), "trained", step=step)
            self._close(sample, "trained")

    def drop(self, sample: SampleId, reason: str, message: str = "") -> None:
        """Close a sample that is not trained on."""
        self._note(self._moving(sample, "dropped"), "dropped", reason=reason, message=message)
        if reason not in CHOSEN:
            self._failures[sample.prompt, sample.sample] = (reason, message)
        self._close(sample, reason)

    def is_poison(self, prompt: str) -> bool:
        """Tell whether a prompt has killed as many workers as it may, if it was alone with the last of them."""
        return self._kills[prompt] >= self._limit

    def snapshot(self) -> list[Frame]:
        """Return frames that say where everything is, for `Past.read`; closed prompts are in its counts only.

        A sample that failed is counted when its prompt is closed: until then the run that goes on drops it again.
        """
        steps = {entry.id.prompt: entry.step for entry in self._entries.values()}
        prompts = [(prompt, self._sizes[prompt], step) for prompt, step in steps.items()]
        kills = {prompt: self._kills[prompt] for prompt in steps if self._kills[prompt]}
        closed = self.closed - Counter(reason for reason, _ in self._failures.values())
        frames: list[Frame] = [{"kind": "snapshot", "open": prompts, "closed": dict(closed), "kills": kills}]
        for (prompt, sample), (reason, message) in self._failures.items():
            place = {"prompt": prompt, "sample": sample}
            frames.append({"kind": "dropped", **place, "reason": reason, "message": message})
        for entry in self._entries.values():
            place = {"prompt": entry.id.prompt, "sample": entry.id.sample}
            if entry.state != "issued" or entry.id.attempt:
                begun = entry.id.attempt if entry.state != "issued" else entry.id.attempt - 1
                frames.append({"kind": "running", **place, "attempt": begun, "member": entry.member})
            for number, turn in enumerate(entry.turns, start=1):
                frames.append({"kind": "turn", **place, "number": number, "turn": turn})
        return frames

    def _advance(self, sample: SampleId, state: State) -> None:
        entry = self._moving(sample, state)
        self._note(entry, state)
        entry.state = state

    def _moving(self, sample: SampleId, state: State) -> Entry:
        """Return an open sample that may become that."""
        entry = self[sample]
        if state not in MOVES[entry.state]:
            raise LedgerError(f"{entry.id} is {entry.state} and cannot become {state}")
        return entry

    def _note(self, entry: Entry, kind: str, **fields: Any) -> None:
        self._write({"kind": kind, "prompt": entry.id.prompt, "sample": entry.id.sample, **fields})

    def _close(self, sample: SampleId, end: str) -> None:
        self.closed[end] += 1
        del self._entries[sample.prompt, sample.sample]
        samples = [(sample.prompt, number) for number in range(self._sizes[sample.prompt])]
        if not any(key in self._entries for key in samples):
            del self._sizes[sample.prompt]
            self._victims.pop(sample.prompt, None)
            self._ended.add(sample.prompt)
            for key in samples:
                self._failures.pop(key, None)
