"""What the agent may say: one call of a tool, or an answer; any text gives an `Action`, never an exception.

    <tool>caption(2,1)</tool>                     <answer>red</answer>
    <tool>video_qa(2,1,3, what colour?)</tool>    <answer>unknown</answer>
    <tool>look(2,1,3)</tool>                      <tool>find(a red ring)</tool>

The last complete element decides, and a call goes before an answer. Brackets around a node and quotes around words may
be there or not, and `get_caption` is another name of `caption`, so replies in the published form can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from vsr1.navigate.record import ABSTENTION, normalised
from vsr1.navigate.tree import Node
from vsr1.settings.navigate import ToolName
from vsr1.video.clips import Clip

_NAMES: dict[str, ToolName] = {
    "caption": "caption", "get_caption": "caption", "video_qa": "video_qa", "look": "look", "find": "find",
}  # fmt: skip
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_NODE = re.compile(r"[(\s]*([0-9]{1,3}(?:\s*,\s*[0-9]{1,3})*)\s*,?\s*\)*\s*(?:,(.*))?", re.DOTALL)
_NODE_CLIP = re.compile(r".+@[1-8](?:\.[1-8]){2}", re.DOTALL)
_ELEMENT = r"<{0}>((?:(?!</?{0}>).)*)</{0}>"


@dataclass(frozen=True)
class ToolCall:
    """One question to a tool about one film: the key under which its answer is shared and kept."""

    film: str
    tool: ToolName
    node: Node | None = None
    words: str = ""


@dataclass(frozen=True, eq=False)
class ToolResult:
    """What a tool gives back, and what that took."""

    text: str | None  # None: the tree has no caption of the node
    clip: Clip | None = None  # of a look
    nodes: tuple[Node, ...] = ()  # of a search, best first
    seconds: float = 0.0
    visual_tokens: int = 0
    cached: bool = False


def node_clip(film: str, node: Node) -> str:
    """Return the name of the clip that shows a node."""
    return f"{film}@{'.'.join(map(str, node))}"


def is_node_clip(name: str) -> bool:
    """Tell whether a clip has such a name, of a node that has parts around it; the name of a video may have an @."""
    return _NODE_CLIP.fullmatch(name) is not None


def clip_node(name: str) -> tuple[str, Node]:
    """Return the film and the node that `node_clip` has named.

    Raises:
        ValueError: it is no such name.
    """
    film, _, node = name.rpartition("@")
    if not film:
        raise ValueError(f"clip {name!r} names no node of a film, as in film@2.1.3")
    return film, tuple(int(number) for number in node.split(".") if number)


class Use(Protocol):
    """Calls a tool.

    Raises:
        ToolError: the tool has no answer; the sample is lost, and is no answer of the policy.
    """

    async def __call__(self, call: ToolCall) -> ToolResult: ...


class ToolError(RuntimeError):
    """A tool that did not answer; the message names it, the film and the reason."""


@dataclass(frozen=True)
class Action:
    """What a reply asks for: a call, an answer, or neither."""

    tool: ToolName | None = None
    node: Node | None = None
    words: str = ""
    is_answer: bool = False

    @property
    def abstains(self) -> bool:
        """Tell whether the answer is that the agent does not know."""
        return self.is_answer and normalised(self.words) == ABSTENTION


def parse_reply(text: str) -> Action:
    """Return the action of a reply, without a tool and an answer if there is none that can be read."""
    call = _last(text, "tool")
    if call is not None:
        return _call(call)
    answer = _last(text, "answer")
    return Action(words=answer.strip(), is_answer=True) if answer and answer.strip() else Action()


def _call(text: str) -> Action:
    parts = _CALL.fullmatch(text)
    tool = _NAMES.get(parts.group(1)) if parts else None
    if parts is None or tool is None:
        return Action()
    if tool == "find":
        words = _words(parts.group(2))
        return Action("find", words=words) if words else Action()
    node = _NODE.fullmatch(parts.group(2))
    if node is None:
        return Action()
    words = _words(node.group(2) or "")
    if bool(words) != (tool == "video_qa"):
        return Action()
    return Action(tool, tuple(int(number) for number in node.group(1).split(",")), words)


def _words(text: str) -> str:
    text = " ".join(text.split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _last(text: str, tag: str) -> str | None:
    elements = re.findall(_ELEMENT.format(tag), text, re.DOTALL)
    return elements[-1] if elements else None
