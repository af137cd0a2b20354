"""Between the episodes that call tools and the pools that answer: every call is made once, and all who want it wait.

A call's answer is shared by who asks for it at the same time, kept in memory, and on disk where the tool is the same
the next time: under a hash of the film's content, the node's seconds, the tool with its model, and the words. A call
without an answer within the deadline fails with `ToolError` for all who wait, is not kept, and may be made again. The
time that an actor takes to start does not count: where it is longer than the deadline, no call would ever be answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vsr1.formats.atomic import write_json
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.ranking import ranked_nodes
from vsr1.navigate.tree import ClipTree, Node
from vsr1.settings.navigate import ToolName
from vsr1.shared_calls import SharedCalls
from vsr1.video.clips import Clip

NAMED = 3  # nodes that a search names
START_S = 900.0  # until an actor that has not started fails the calls that wait for it


class Films(Protocol):
    """What is known of films, and who describes them; goes to the actors of the pools as it is."""

    @property
    def model(self) -> str:
        """Return what names the captioner with everything that its words depend on."""

    def digest(self, film: str) -> str:
        """Return what names the content of a film."""

    def tree(self, film: str) -> ClipTree:
        """Return the clip tree of a film."""

    def start(self) -> None:
        """Load what answers, in the process that is to answer; once there is enough."""

    def answer(self, call: ToolCall) -> ToolResult:
        """Return the caption of a node, or the answer to a question about it."""

    def read(self, video_id: str) -> Clip:
        """Return the clip of a node, as `vsr1.navigate.calls.node_clip` names it."""


async def _always() -> None:
    """Be ready."""


@dataclass(eq=False)
class Member:
    """One actor of a pool: how it is asked, and how it is started again when it keeps a call too long.

    `ready` returns once it can be asked.
    """

    ask: Callable[[ToolCall], Awaitable[ToolResult]]
    restart: Callable[[], None] = lambda: None
    ready: Callable[[], Awaitable[None]] = _always
    open: int = 0  # calls it works on
    has_started: bool = False


@dataclass
class ToolCosts:
    """What the calls of a tool came to."""

    calls: int = 0  # that episodes made
    asked: int = 0  # of a pool; the others were shared or kept
    failed: int = 0
    seconds: float = 0.0  # of what pools were asked
    visual_tokens: int = 0


@dataclass(eq=False)
class ToolPlane:
    """Answers the calls of many episodes.

    Args:
        pools: the members that answer a tool.
        cache: folder for answers; None keeps them in memory only.
        find_level: of the nodes whose captions are searched.
    """

    films: Films
    pools: Mapping[ToolName, list[Member]]
    deadline_s: float
    cache: Path | None = None
    find_level: int = 2
    costs: dict[str, ToolCosts] = field(default_factory=dict)
    _results: dict[ToolCall, ToolResult] = field(default_factory=dict)
    _shared: SharedCalls[ToolResult] = field(default_factory=SharedCalls)

    async def use(self, call: ToolCall) -> ToolResult:
        """Return the answer to a call.

        Raises:
            ToolError: there is none, and whoever asked has to be dropped.
        """
        costs = self.costs.setdefault(call.tool, ToolCosts())
        costs.calls += 1
        if call in self._results:
            return replace(self._results[call], seconds=0.0, cached=True)
        return await self._shared.answer(call, lambda: self._answer(call))

    async def _answer(self, call: ToolCall) -> ToolResult:
        result = await self._search(call) if call.tool == "find" else self.from_disk(call) or await self._ask(call)
        self._results[call] = result
        return result

    async def _search(self, call: ToolCall) -> ToolResult:
        """Search the captions of a level, which are made where they are missing."""
        parts = self.films.tree(call.film).level(self.find_level)
        results = await asyncio.gather(*(self.use(ToolCall(call.film, "caption", part)) for part in parts))
        captions = {part: result.text for part, result in zip(parts, results, strict=True) if result.text is not None}
        return ToolResult("" if captions else None, nodes=tuple(ranked_nodes(captions, call.words, NAMED)))

    async def _ask(self, call: ToolCall) -> ToolResult:
        costs, began = self.costs[call.tool], time.monotonic()
        member = min(self.pools[call.tool], key=lambda member: member.open)
        member.open += 1
        costs.asked += 1
        limit, deadline = START_S, f"{START_S:g} s, in which its actor has not started"
        try:
            if not member.has_started:
                await asyncio.wait_for(member.ready(), limit)
                member.has_started = True
            limit, deadline = self.deadline_s, f"{self.deadline_s:g} s (navigate.pools.deadline_s)"
            result = await asyncio.wait_for(member.ask(call), limit)
        except TimeoutError:
            costs.failed += 1
            member.has_started = False
            member.restart()
            raise ToolError(f"{_name(call)}: no answer in {deadline}") from None
        except Exception:
            costs.failed += 1
            member.has_started = False  # perhaps it has died
            raise
        finally:
            member.open -= 1
        result = replace(result, seconds=time.monotonic() - began)
        costs.seconds += result.seconds
        costs.visual_tokens += result.visual_tokens
        self._keep(call, result)
        return result

    def from_disk(self, call: ToolCall) -> ToolResult | None:
        """Return an answer that an earlier run has kept, None where there is none."""
        file = self._file(call)
        if file is None or not file.is_file():
            return None
        row = json.loads(file.read_text(encoding="utf-8"))
        return ToolResult(row["text"], visual_tokens=row["visual_tokens"], cached=True)

    def _keep(self, call: ToolCall, result: ToolResult) -> None:
        if (file := self._file(call)) is not None and result.text is not None:
            write_json(file, {"text": result.text, "visual_tokens": result.visual_tokens})

    def _file(self, call: ToolCall) -> Path | None:
        if self.cache is None:
            return None
        span = self.films.tree(call.film).span(call.node or ())
        parts = (self.films.digest(call.film), span, call.tool, self.films.model, call.words)
        name = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"


def _name(call: ToolCall) -> str:
    node: Node = call.node or ()
    return f"{call.tool} of film {call.film!r} at {','.join(map(str, node)) or 'all'}"
