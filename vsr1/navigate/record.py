"""What is particular to navigation in a trajectory: the task, and what each turn asked for and got."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vsr1.episode.moments import Span
from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.episode.trajectory import Trajectory
from vsr1.navigate.tree import ClipTree, Node
from vsr1.settings.navigate import ToolName

Status = Literal[
    "ok",  # a call that a tool has answered
    "repeat",  # a call that was made before, answered from the history
    "answered",
    "abstained",
    "malformed",  # neither a call nor an answer, or a call that nobody can read
    "bad_node",  # a node that the tree has not, or not for this tool
    "closed_node",  # a node whose parent was not opened
    "short_video",  # a call to a node of a film without parts
    "no_caption",  # the tree has no caption of this node
    "out_of_budget",  # a call that costs more than what is left
    "unseen",  # a match outside the parts that were looked into, where a search navigates
]
EndReason = Literal["answered", "abstained", "out_of_budget", "no_progress"]
ABSTENTION = "unknown"  # the answer of who does not know


@dataclass
class NavigateTask:
    """One sample of one question about a film, with what is known about its answer: nothing, when serving."""

    id: SampleId
    question_id: str
    film: str
    seconds: float  # of the film
    question: str
    budget: float
    options: list[str] = field(default_factory=list)  # answers to choose from: A, B, ...; empty: an answer in words
    answer: str = ""  # the right one, a letter where there are options
    clues: list[Span] = field(default_factory=list)  # seconds, where the answer can be seen
    scenes: list[float] = field(default_factory=list)  # seconds of scene boundaries that the tree is cut at

    @property
    def tree(self) -> ClipTree:
        """Return the clip tree of the film."""
        return ClipTree.of(self.seconds, self.scenes)


@dataclass
class NavigateTurn:
    """What a reply asked for, what became of it, and what is left of the budget then."""

    status: Status
    tool: ToolName | None = None
    node: Node | None = None
    words: str = ""  # of a question, a search or an answer
    cost: float = 0.0  # in units of the budget
    left: float = 0.0  # of the budget
    seconds: float = 0.0  # that the tool took
    visual_tokens: int = 0  # that the tool has read
    cached: bool = False  # nobody looked at the film for it: the answer was there
    nodes: list[Node] = field(default_factory=list)  # that a search has found, best first
    index_version: str = ""  # of the corpus, where the film was found in one


NavigateTrajectory = Trajectory[NavigateTask, NavigateTurn]


def drawn_budget(budgets: list[float], seed: int, prompt: str) -> float:
    """Return the budget of a group: it follows from the run's seed and the prompt id."""
    return budgets[hashed_seed(seed, "budget", prompt) % len(budgets)]


def visited(trajectory: NavigateTrajectory) -> list[Node]:
    """Return the nodes that were looked into, in order; a search looks into none."""
    turns = (turn.record for turn in trajectory.turns)
    return [turn.node for turn in turns if turn.status == "ok" and turn.node is not None]


def spent(trajectory: NavigateTrajectory) -> float:
    """Return what the calls of an episode cost, in units of the budget."""
    return sum(turn.record.cost for turn in trajectory.turns)


def is_right(trajectory: NavigateTrajectory) -> bool:
    """Tell whether the episode ended with the right answer: its letter or its words, whatever the case."""
    task, last = trajectory.task, trajectory.last.record
    if last.status != "answered":
        return False
    right = {normalised(task.answer)}
    letters = [chr(ord("A") + place) for place in range(len(task.options))]
    if task.answer in letters:
        right.add(normalised(task.options[letters.index(task.answer)]))
    return normalised(last.words) in right


def normalised(words: str) -> str:
    """Return an answer in small letters, without blanks around it, double ones and a final dot."""
    return " ".join(words.lower().split()).rstrip(".")
