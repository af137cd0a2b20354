"""Scripted agents of the long toy world: they write the same replies as a policy and see what it sees.

`oracle` knows the leaf and makes detours, as a beginning for training. `bench/navigators.py` has others, which do not.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from vsr1.episode.environment import PolicyReply, Prompt, run_episode
from vsr1.episode.trajectory import FinishReason
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.prompts import name_of
from vsr1.navigate.record import ABSTENTION, NavigateTask, NavigateTrajectory
from vsr1.navigate.tree import LEVELS, Node
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_films import LongFilm
from vsr1.toy.world import COLOURS, DOING

DETOUR = 0.3  # chance of each wrong turn of the oracle
SHOWN = re.compile(r"^[0-9,]+ \[[0-9]+-[0-9]+\] (.*)$", re.MULTILINE)
_QUESTION = re.compile(r"what colour is the (\w+) where a (\w+) is ([\w ]+)\?")


@dataclass
class View:
    """What an agent knows: the question, the captions of the first level, and what it has read since."""

    task: NavigateTask
    captions: dict[Node, str]
    rng: random.Random
    detail: str = field(init=False)
    shape: str = field(init=False)
    doing: str = field(init=False)
    answer: str = ""  # once it was seen
    place: Node = ()  # where it was seen
    calls: int = 0  # made so far

    def __post_init__(self) -> None:
        match = _QUESTION.fullmatch(self.task.question)
        assert match is not None
        self.detail, self.shape, self.doing = match.groups()

    @property
    def left(self) -> int:
        """Return the calls that are left."""
        return int(self.task.budget) - self.calls

    @property
    def look_alikes(self) -> list[Node]:
        """Return the branches whose caption names the shape."""
        return [node for node in self.task.tree.roots if self.shape in self.captions[node].split()]

    def is_right(self, node: Node) -> bool | None:
        """Return whether a node shows that its scene is the right one, None where it does not say."""
        text = self.captions[node]
        doing = next((words for words in DOING.values() if f"{self.shape} {words}" in text), None)
        return None if doing is None else doing == self.doing

    def unread(self, node: Node) -> list[Node]:
        """Return the parts of a node that were not read."""
        return [part for part in self.task.tree.children(node) if part not in self.captions]


Steps = Generator[str, str, None]  # yields replies, gets what follows them
Agent = Callable[[View], Steps]


@dataclass
class Spoken:
    """A reply of a scripted agent: words, and no tokens."""

    text: str
    prompt_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    latents: np.ndarray | None = None
    soft_tokens: np.ndarray | None = None
    seed: int = 0
    weight_version: int = 0


def play(
    film: LongFilm, task: NavigateTask, settings: NavigateConfig, agent: Agent
) -> tuple[NavigateTrajectory, list[str]]:
    """Play an episode through the environment; return it, and what each of its turns was shown in addition."""
    view = View(task, {node: film.caption(node) for node in task.tree.roots}, random.Random(f"{task.id} {film.seed}"))
    steps, shown = agent(view), list[str]()

    async def use(call: ToolCall) -> ToolResult:
        return film.result(call, find_level=settings.find_level)

    async def reply_to(prompt: Prompt, turn: int) -> PolicyReply:
        shown.append(str(prompt.parts[-1]))
        return Spoken(steps.send(shown[-1]) if turn > 1 else next(steps))

    return asyncio.run(run_episode(NavigateEnvironment(task, settings, use), reply_to)), shown


def oracle(view: View) -> Steps:
    """Go to the leaf with the answer, with wrong turns that are left again as far as the budget allows them."""
    tree = view.task.tree
    [goal] = [tree.leaf(number) for number in tree.covered(view.task.clues)]
    detours = _detours(view, goal)[: max(int(view.task.budget) - 2, 0)]
    for node in sorted([*detours, goal[:2], goal], key=lambda node: (node[:1] == goal[:1], len(node), node == goal)):
        if view.left > 0:
            yield from read(view, node)
    yield last_words(view, guesses=False)


def _detours(view: View, goal: Node) -> list[Node]:
    wrong = [view.unread(branch)[0] for branch in view.look_alikes if branch != goal[:1]]
    wrong += [part for part in view.unread(goal[:1]) if part != goal[:2]]
    wrong += [leaf for leaf in view.unread(goal[:2]) if leaf < goal]
    return [node for node in wrong if view.rng.random() < DETOUR]


def read(view: View, node: Node) -> Generator[str, str, None]:
    """Ask for a caption, and see whether it holds the answer."""
    known = view.captions.get(node[:-1], "")
    text = yield call(
        f"wanted {view.shape} {view.doing}, {view.detail}. {name_of(node[:-1])} {known}.", f"caption({name_of(node)})"
    )
    match = SHOWN.search(text)
    view.captions[node] = match.group(1) if match else ""
    view.calls += 1
    if len(node) == LEVELS and view.is_right(node):
        colour = re.search(rf"(\w+) {view.detail}\b", view.captions[node])
        view.answer, view.place = (colour.group(1), node) if colour else ("", ())


def call(thought: str, tool: str) -> str:
    """Return a reply that calls a tool."""
    return f"<think>{thought}</think> <tool>{tool}</tool>"


def last_words(view: View, *, guesses: bool = True) -> str:
    """Return the reply that ends an episode: the answer if it was seen, else a guess or an abstention."""
    guess = view.rng.choice(COLOURS) if guesses else ABSTENTION
    seen = f"{view.answer} {view.detail}" if view.answer else f"no {view.detail}"
    return f"<think>{seen}.</think> <answer>{view.answer or guess}</answer>"
