"""The long toy world: films of 10 minutes to 8 hours, stitched from toy films, with a question about one leaf.

Every leaf of the clip tree is one toy film, so frames are real and known at any second. A part of the first level is a
scene: one shape that does one thing all the time, in changing colours. Leaves may show a detail, another shape, in
their second half. Captions lose detail by level:

    level 1   a cross                                      the shape of the scene
    level 2   a cross moving left, a ring                  and what it does, dropped now and then; details by shape
    level 3   128 red cross moving left, 133 blue ring ... everything, with its seconds

"What colour is the ring where a cross is moving left?" Some scenes have the same shape (look-alike branches) and one of
them does the right thing; each of them shows the detail in exactly one leaf. So the way down is: a branch that looks
right, a part that shows whether it is, the part with the detail, its leaf. The prior of all of that is uniform, which
makes the best expected accuracy for a budget computable (`bench/optimum.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.navigate.calls import ToolCall, ToolResult, node_clip
from vsr1.navigate.ranking import ranked_nodes
from vsr1.navigate.record import NavigateTask
from vsr1.navigate.tree import LEVELS, ClipTree, Node, tree_width
from vsr1.settings.navigate import LONGEST_MINUTES, SHORTEST_MINUTES
from vsr1.toy.render import render
from vsr1.toy.world import COLOURS, DOING, MOTIONS, SHAPES, Event, Film, ToyWorldError, describe
from vsr1.video.clips import Clip

DROPPED = 0.2  # share of the second level's captions that do not say what the scene's shape does
DETAILS = 0.3  # share of leaves with a detail that nobody asks for
NAMED = 3  # nodes that a search names
LOOK_ALIKES = (1, 2)  # scenes beside the right one that have its shape
_CHANCE = 10**6


@dataclass(frozen=True)
class LongFilm:
    """A film that follows from its numbers: a tree of width K over K^3 toy films of `leaf_seconds` each."""

    film: str
    leaf_seconds: int
    width: int
    seed: int
    tree: ClipTree = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ClipTree.of(self.seconds))

    @property
    def seconds(self) -> float:
        return float(self.leaf_seconds * self.width**LEVELS)

    @cached_property
    def plan(self) -> Plan:
        """Return what the film is about."""
        return _plan(self.width, np.random.default_rng([self.seed, 0]))

    def leaf(self, number: int) -> Film:
        """Return the toy film of a leaf, from 0; its seconds begin at 0."""
        return _leaf(self, number)

    def events(self, node: Node) -> list[Event]:
        """Return the events of a leaf, in seconds of the whole film."""
        [number] = self.tree.leaves(node)
        start = number * self.leaf_seconds
        return [Event(start + event.start, start + event.end, *event.look) for event in self.leaf(number).events]

    def frames(self, times: np.ndarray) -> np.ndarray:
        """Draw the frames at seconds [T] of the film: uint8 [T, 64, 64, 3]."""
        last = self.width**LEVELS - 1
        numbers = np.minimum(times // self.leaf_seconds, last).astype(int)
        parts = [
            render(self.leaf(int(number)), times[numbers == number] - number * self.leaf_seconds)
            for number in np.unique(numbers)
        ]
        return np.concatenate(parts)

    def caption(self, node: Node) -> str:
        """Return what a captioner says of a node; the coarser the level, the less."""
        if len(node) == LEVELS:
            return ", ".join(f"{event.start} {describe(event)}" for event in self.events(node))
        shape, motion = self.plan.scenes[node[0] - 1]
        if len(node) == 1:
            return f"a {shape}"
        is_dropped = hashed_seed(self.seed, "dropped", *node) % _CHANCE < DROPPED * _CHANCE
        scene = f"a {shape}" if is_dropped else f"a {shape} {DOING[motion]}"
        details = (event.shape for leaf in self.tree.children(node) for event in self.events(leaf)[1:])
        return ", ".join([scene, *(f"a {detail}" for detail in dict.fromkeys(details))])

    def answer(self, node: Node, question: str) -> str:
        """Return what a model says that is asked about a leaf: what it sees of the shapes that the question names."""
        asked = [event for event in self.events(node) if event.shape in question.lower()]
        return ", ".join(describe(event) for event in asked) or "that is not in this part"

    def clip(self, node: Node, frames: int) -> Clip:
        """Return frames spread over a node, an even number of them."""
        start, end = self.tree.span(node)
        times = start + (np.arange(frames) + 0.5) * (end - start) / frames
        return Clip.make(node_clip(self.film, node), self.frames(times), times, self.seconds)

    @property
    def query(self) -> str:
        """Return the words in which the moment of the question is searched in a corpus."""
        return self.query_for(self.task(SampleId(self.film)).answer)

    def query_for(self, colour: str) -> str:
        """Return the same words for a detail of any colour."""
        return f"a {colour} {self.plan.detail} where a {self.plan.shape} is {DOING[self.plan.motion]}"

    def result(self, call: ToolCall, frames: int = 2, find_level: int = 2) -> ToolResult:
        """Return what a tool says, without its cost."""
        match call.tool:
            case "find":
                captions = {node: self.caption(node) for node in self.tree.level(find_level)}
                return ToolResult("", nodes=tuple(ranked_nodes(captions, call.words, NAMED)))
            case "look":
                return ToolResult("", self.clip(call.node or (), frames))
            case "video_qa":
                return ToolResult(self.answer(call.node or (), call.words))
            case "caption":
                return ToolResult(self.caption(call.node or ()))

    def task(self, sample: SampleId, budget: float = 0.0) -> NavigateTask:
        """Return the question about the film."""
        [right] = [place for place in self.plan.places if place[0] == self.plan.right]
        event = self.events(right)[1]
        return NavigateTask(
            id=sample,
            question_id=self.film,
            film=self.film,
            seconds=self.seconds,
            question=f"what colour is the {self.plan.detail} where a {self.plan.shape} is {DOING[self.plan.motion]}?",
            budget=budget,
            answer=event.colour,
            clues=[(float(event.start), float(event.end))],
        )


@dataclass(frozen=True)
class Plan:
    """What a film shows where: scenes by part of the first level, and the leaves with the detail that is asked for."""

    scenes: tuple[tuple[str, str], ...]  # shape and motion
    right: int  # number of the scene that is asked for, from 1
    look_alikes: frozenset[int]  # scenes of its shape, itself included
    detail: str  # shape
    places: frozenset[Node]  # a leaf of each of the look-alikes

    @property
    def shape(self) -> str:
        return self.scenes[self.right - 1][0]

    @property
    def motion(self) -> str:
        return self.scenes[self.right - 1][1]


@lru_cache(maxsize=1 << 17)  # the leaves of 256 films of the longest
def _leaf(film: LongFilm, number: int) -> Film:
    rng = np.random.default_rng([film.seed, 1, number])
    node, end = film.tree.leaf(number), film.leaf_seconds
    shape, motion = film.plan.scenes[node[0] - 1]
    detail = film.plan.detail if node in film.plan.places else None
    if detail is None and rng.random() < DETAILS:
        taken = {shape, film.plan.detail} if node[0] in film.plan.look_alikes else {shape, film.plan.shape}
        detail = str(rng.choice([name for name in SHAPES if name not in taken]))
    middle = end // 2 if detail else end
    events = [Event(0, middle, str(rng.choice(COLOURS)), shape, motion)]
    if detail:
        events.append(Event(middle, end, str(rng.choice(COLOURS)), detail, str(rng.choice(MOTIONS))))
    return Film(f"{film.film}@{number}", end, tuple(events), int(rng.integers(2**31)))


def make_long_film(film: str, minutes: float, seed: int) -> LongFilm:
    """Make a film of about so many minutes: its leaves have whole seconds.

    Raises:
        ToyWorldError: a length outside 10 to 480 minutes.
    """
    if not SHORTEST_MINUTES <= minutes <= LONGEST_MINUTES:
        raise ToyWorldError(f"a long film has {SHORTEST_MINUTES} to {LONGEST_MINUTES} minutes, not {minutes:g}")
    width = tree_width(minutes * 60)
    leaf = round(minutes * 60 / width**LEVELS)
    while tree_width(leaf * width**LEVELS) != width:  # rounding has crossed the border between two widths
        leaf += 1 if tree_width(leaf * width**LEVELS) < width else -1
    return LongFilm(film, leaf, width, hashed_seed(seed, film) % 2**31)


def _plan(width: int, rng: np.random.Generator) -> Plan:
    shape, detail = (str(name) for name in rng.choice(SHAPES, 2, replace=False))
    count = int(rng.choice(LOOK_ALIKES)) + 1
    branches = [int(number) + 1 for number in rng.permutation(width)[:count]]
    motion, *others = (str(name) for name in rng.permutation(MOTIONS))
    scenes = []
    for number in range(1, width + 1):
        if number == branches[0]:
            scenes.append((shape, motion))
        elif number in branches:
            scenes.append((shape, str(rng.choice(others))))
        else:
            scenes.append((str(rng.choice([name for name in SHAPES if name != shape])), str(rng.choice(MOTIONS))))
    places = frozenset((number, *(int(n) for n in rng.integers(1, width + 1, LEVELS - 1))) for number in branches)
    return Plan(tuple(scenes), branches[0], frozenset(branches), detail, places)
