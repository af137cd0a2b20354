"""What the agent is told: how the tools are called, what it starts from, and what is left of its budget each turn."""

from __future__ import annotations

from collections.abc import Sequence

from vsr1.formats.plain import plain
from vsr1.navigate.record import ABSTENTION, NavigateTask, NavigateTurn
from vsr1.navigate.tree import ClipTree, Node
from vsr1.settings.navigate import NavigateConfig, ToolName

FORMS: dict[ToolName, str] = {
    "caption": "<tool>caption(2,1)</tool> describes a part",
    "video_qa": "<tool>video_qa(2,1,3, a question)</tool> asks about a part",
    "look": "<tool>look(2,1,3)</tool> shows a part",
    "find": "<tool>find(words)</tool> names the parts that fit some words",
}
TURN_END = "<|im_end|>"
AFTER = f"{TURN_END}\n<|im_start|>assistant\n"
FAULTS = {
    "malformed": "Write one call, or one answer.",
    "bad_node": "There is no such part for this tool.",
    "closed_node": "Describe the part around it first.",
    "short_video": "The video is too short to have parts.",
    "no_caption": "This part has no description.",
    "out_of_budget": "That costs more than what is left.",
    "unseen": "You have not looked into that part.",
}


def system_prompt(settings: NavigateConfig) -> str:
    """Return what every episode begins with."""
    return (
        f"Answer a question about a long video. {tool_words(settings)} Or end with <answer>the answer</answer>; "
        f"<answer>{ABSTENTION}</answer> if you do not know."
    )


def tool_words(settings: NavigateConfig) -> str:
    """Return how parts are numbered and tools are called."""
    tools = "; ".join(f"{FORMS[tool]} and costs {settings.costs[tool]:g}" for tool in settings.tools)
    return (
        "Its parts are numbered, and each has parts in turn, three levels deep. "
        f"In each reply, think inside <think> </think>, then call one tool: {tools}."
    )


def first_turn(task: NavigateTask, tree: ClipTree, captions: Sequence[str | None], settings: NavigateConfig) -> str:
    """Return the first prompt in chat markup: the question, the captions of the first level, and the budget.

    Args:
        captions: of `tree.roots`, None where there is none.
    """
    options = "".join(f"\n{chr(ord('A') + place)}. {plain(text)}" for place, text in enumerate(task.options))
    user = f"{plain(task.question)}{options}\n{film_words(task, tree, captions)}"
    return f"<|im_start|>system\n{system_prompt(settings)}{TURN_END}\n<|im_start|>user\n{user}{AFTER}"


def film_words(task: NavigateTask, tree: ClipTree, captions: Sequence[str | None]) -> str:
    """Return what is said of a film at first: its length, the captions of `tree.roots`, and the budget."""
    parts = [part_line(tree, node, text) for node, text in zip(tree.roots, captions, strict=True)]
    return "\n".join([f"The video has {task.seconds:.0f} seconds.", *parts, remainder(task.budget)])


def next_turn(turn: NavigateTurn, text: str) -> tuple[str, str]:
    """Return what stands before and after a clip in what follows a reply; together the whole without a clip.

    Args:
        text: that a tool has given.
    """
    if turn.status == "repeat":
        text = f"(as before) {text}"
    body = FAULTS.get(turn.status) or plain(text)
    return f"{TURN_END}\n<|im_start|>user\n{body}", f"\n{remainder(turn.left)}{AFTER}"


def remainder(left: float) -> str:
    """Return what is said of the budget in each turn; without any left, that an answer is due."""
    return f"Left: {left:g}." if left > 0 else "Left: 0. Answer now."


def search_text(tree: ClipTree, nodes: Sequence[Node]) -> str:
    """Return what a search has found, best first."""
    return "\n".join(part_line(tree, node, "") for node in nodes) or "Nothing fits."


def name_of(node: Node) -> str:
    """Return a node as the agent writes it."""
    return ",".join(map(str, node))


def part_line(tree: ClipTree, node: Node, text: str | None) -> str:
    """Return what is shown of a node: its name, its seconds, and its caption or what else a tool says of it."""
    start, end = tree.span(node)
    words = "(no description)" if text is None else plain(text)
    return f"{name_of(node) or 'all'} [{start:.0f}-{end:.0f}] {words}".rstrip()
