"""Scripted agents of the long toy world: they write the same replies as a policy and see what it sees.

`reader` teaches: it knows what captions say, and writes down what each move follows from, so that a policy can find its
moves in what it has read. `bench/navigators.py` has others.
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
from vsr1.navigate.prompts import name_of, part_line
from vsr1.navigate.record import NavigateTask, NavigateTrajectory
from vsr1.navigate.tree import LEVELS, Node
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_films import LongFilm
from vsr1.toy.world import COLOURS, DOING

MARKS = {None: "next", False: "no", True: "seen"}  # what a thought of the reader says of a branch
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
    wanted: str = ""  # colour of the detail in the moment that is searched
    careless: bool = False  # takes the first scene of the right shape for the right one

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
        return None if doing is None else self.careless or doing == self.doing

    def shows_detail(self, node: Node) -> bool:
        """Tell whether the caption of a part names the detail."""
        return self.detail in self.captions[node].split()[-1:] or f"a {self.detail}," in self.captions[node]

    def detailed(self, branch: Node) -> list[Node]:
        """Return the parts of a branch that were read and show the detail."""
        return [part for part in self.task.tree.children(branch) if part in self.captions and self.shows_detail(part)]

    def verdict(self, branch: Node) -> bool | None:
        """Return whether what was read of a branch shows that it is the right one, None where nothing says it."""
        verdicts = {self.is_right(node) for node in self.captions if node[:1] == branch}
        return True if True in verdicts else False if False in verdicts else None

    def unread(self, node: Node) -> list[Node]:
        """Return the parts of a node that were not read."""
        return [part for part in self.task.tree.children(node) if part not in self.captions]


Steps = Generator[str, str, None]  # yields replies, gets what follows them
Agent = Callable[[View], Steps]
Known = dict[Node, bool | None]  # of branches: whether they are right, None where nothing says it


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
    film: LongFilm, task: NavigateTask, settings: NavigateConfig, agent: Agent, *, careless: bool = False
) -> tuple[NavigateTrajectory, list[str]]:
    """Play an episode through the environment; return it, and what each of its turns was shown in addition."""
    captions = {node: film.caption(node) for node in task.tree.roots}
    view = View(task, captions, random.Random(f"{task.id} {film.seed}"), careless=careless)
    steps, shown = agent(view), list[str]()

    async def use(call: ToolCall) -> ToolResult:
        return film.result(call, find_level=settings.find_level)

    async def reply_to(prompt: Prompt, turn: int) -> PolicyReply:
        shown.append(str(prompt.parts[-1]))
        return Spoken(steps.send(shown[-1]) if turn > 1 else next(steps))

    return asyncio.run(run_episode(NavigateEnvironment(task, settings, use), reply_to)), shown


def reader(view: View) -> Steps:
    """Read look-alikes in order until one is right, its parts until one shows the detail, and the leaves of that.

    A branch that shows that it is wrong is left at once, and the last one that is open is right. Each thought says what
    the last caption shows and what is known of every branch: `no` is wrong, `seen` right, `next` open. The first one
    repeats their shapes, so that each mark follows from two words before it, and the last one is like all others.

        wanted triangle moving up, ring. 1 triangle next, 2 triangle next, 3 square no, 4 square no.
        wanted triangle moving up, ring. 1,1 triangle moving left, no. 2 seen.
        wanted triangle moving up, ring. 2,1 triangle moving up, ring. 2 seen.
        wanted triangle moving up, ring. 2,1,1 triangle moving up, blue ring. 2 seen.
    """
    thought = yield from in_order(view, _known)
    yield f"<think>{thought}</think> <answer>{view.answer or view.rng.choice(COLOURS)}</answer>"


def in_order(view: View, known: Callable[[View], Known]) -> Generator[str, str, str]:
    """Read as `reader` does while a branch is open, a part unread and a call left; return the last thought.

    Args:
        known: says what is known of the branches that thoughts name.
    """
    node: Node = ()
    while True:
        branches, detail = known(view), f"{view.wanted} {view.detail}".strip()
        thought = [f"wanted {view.shape} {view.doing}, {detail}", *([_seen(view, node)] if node else [])]
        shapes = {branch: "" if node else view.captions[branch].removeprefix("a") for branch in branches}
        marks = ", ".join(f"{name_of(one)}{shapes[one]} {MARKS[verdict]}" for one, verdict in branches.items())
        thought.append(f"{marks}.")
        open_ones = [branch for branch, verdict in branches.items() if verdict is not False]
        unread = [part for one in open_ones[:1] for part in view.unread([*view.detailed(one), one][0])]
        if view.left <= 0 or view.answer or not unread:
            return ". ".join(thought)
        node = unread[0]
        yield from read(view, node, ". ".join(thought))


def _known(view: View) -> Known:
    """Return what is known where one branch is right: that one alone once it is, the last open one being it."""
    known = as_shown(view)
    candidates = [branch for branch, verdict in known.items() if verdict is not False]
    return {candidates[0]: True} if len(candidates) == 1 else known


def as_shown(view: View) -> Known:
    """Return what captions show of the branches: of the right one alone once one shows that it is."""
    verdicts = {branch: view.verdict(branch) for branch in view.look_alikes}
    right = next((branch for branch, verdict in verdicts.items() if verdict), None)
    return {root: verdicts.get(root, False) for root in view.task.tree.roots} if right is None else {right: True}


def _seen(view: View, node: Node) -> str:
    """Return what a caption shows of what is wanted: the shape, what it does, and the detail, of a leaf its colour.

    Where a moment is searched, it also repeats the seconds of a leaf, and the wanted colour beside the one shown.
    """
    doing = next((words for words in DOING.values() if f"{view.shape} {words}" in view.captions[node]), "")
    scene, detail = f"{view.shape} {doing}".rstrip(), view.detail if view.shows_detail(node) else "no"
    is_leaf = len(node) == LEVELS
    if is_leaf and (shown := re.search(rf"(\d+) (\w+) {view.detail}\b", view.captions[node])):
        second, colour = shown.groups()
        is_wanted = "yes" if colour == view.wanted else "no"
        at = f"{view.detail} at {second}, {colour}, wanted {view.wanted}, {is_wanted}"
        detail = at if view.wanted else f"{colour} {view.detail}"
    part = part_line(view.task.tree, node, scene) if is_leaf and view.wanted else f"{name_of(node)} {scene}"
    return f"{part}, {detail}"


def read(view: View, node: Node, thought: str = "") -> Generator[str, str, None]:
    """Ask for a caption, and see whether it holds the answer.

    Args:
        thought: before the call; empty: what is wanted, and the part around the node.
    """
    above = f"wanted {view.shape} {view.doing}, {view.detail}. {name_of(node[:-1])} {view.captions.get(node[:-1], '')}."
    text = yield call(thought or above, f"caption({name_of(node)})")
    match = SHOWN.search(text)
    view.captions[node] = match.group(1) if match else ""
    view.calls += 1
    if len(node) == LEVELS and view.is_right(node):
        colour = re.search(rf"(\w+) {view.detail}\b", view.captions[node])
        view.answer, view.place = (colour.group(1), node) if colour else ("", ())


def call(thought: str, tool: str) -> str:
    """Return a reply that calls a tool."""
    return f"<think>{thought}</think> <tool>{tool}</tool>"
