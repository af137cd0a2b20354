"""The navigation environment: one question, one long film, a tree of clips, tools, and a budget of calls.

The history grows: each observation follows the reply before it, token for token. A call that a tool answers costs what
`navigate.costs` says, whoever asked it before in another episode; one that this episode made before is answered from
its history and costs nothing. What is left of the budget is told each turn and is a limit: a call that costs more is
not made. With nothing left the next reply must be an answer; an episode that only repeats itself or says nothing that
can be read ends too. A tool that does not answer raises, so its sample is lost and never scored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from vsr1.episode.environment import Observation, PolicyReply, turn_of
from vsr1.navigate.calls import Action, ToolCall, ToolResult, Use, parse_reply
from vsr1.navigate.prompts import TURN_END, first_turn, next_turn, part_line, search_text
from vsr1.navigate.record import EndReason, NavigateTask, NavigateTrajectory, NavigateTurn, Status
from vsr1.navigate.tree import LEVELS, Node
from vsr1.settings.navigate import NavigateConfig
from vsr1.video.clips import Clip


class NavigateEnvironment:
    latents_unless = None

    def __init__(self, task: NavigateTask, settings: NavigateConfig, use: Use) -> None:
        self._task, self._settings, self._use = task, settings, use
        self._tree, self._left = task.tree, task.budget
        self._results: dict[ToolCall, ToolResult] = {}
        self._open: set[Node] = {(), *self._tree.roots}
        self._clips: list[Clip] = []  # shown so far
        self._free = settings.free_turns
        self._trajectory = NavigateTrajectory(task)

    async def reset(self) -> Observation | None:
        calls = [ToolCall(self._task.film, "caption", node) for node in self._tree.roots]
        captions = [result.text for result in await asyncio.gather(*map(self._use, calls))]
        self._shown_at = time.monotonic()
        return Observation([self._opening(captions)])

    async def step(self, reply: PolicyReply) -> Observation | None:
        action = Action() if reply.finish_reason == "length" else parse_reply(reply.text)
        before, shown = self._left, list(self._clips)
        record, text, clip = await self._take(action)
        seconds = time.monotonic() - self._shown_at
        number = len(self._trajectory.turns) + 1
        self._trajectory.turns.append(turn_of(reply, number, shown, record, seconds=seconds, keep_latents=False))
        self._trajectory.turns[-1].continues = number > 1
        if record.status in ("answered", "abstained"):
            return self._end("answered" if record.status == "answered" else "abstained")
        if before <= 0:
            return self._end("out_of_budget")
        if record.status != "ok":
            self._free -= 1
            if self._free < 0:
                return self._end("no_progress")
        self._shown_at = time.monotonic()
        opening, closing = next_turn(record, text)
        if reply.text.endswith(TURN_END):  # an engine's reply holds the token that ended it, if it was not cut
            opening = opening.removeprefix(TURN_END)
        if clip is None:
            return Observation([opening + closing], continues=True)
        self._clips.append(clip)
        return Observation([opening, clip, closing], continues=True)

    def trajectory(self) -> NavigateTrajectory:
        return self._trajectory

    def _opening(self, captions: Sequence[str | None]) -> str:
        """Return the first prompt, with the captions of the first level."""
        return first_turn(self._task, self._tree, captions, self._settings)

    def _answered(self, action: Action) -> NavigateTurn:
        """Return what becomes of an answer."""
        status: Status = "abstained" if action.abstains else "answered"
        return NavigateTurn(status, words=action.words, left=self._left)

    async def _take(self, action: Action) -> tuple[NavigateTurn, str, Clip | None]:
        """Return what becomes of an action, the text to show for it, and the clip if it is one."""
        if action.is_answer:
            return self._answered(action), "", None
        if action.tool is None or action.tool not in self._settings.tools:
            return NavigateTurn("malformed", left=self._left), "", None
        turn = NavigateTurn("ok", action.tool, action.node, action.words, left=self._left)
        call = ToolCall(self._task.film, action.tool, action.node, action.words)
        if action.node is not None and (fault := self._fault(action)):
            turn.status = fault
            return turn, "", None
        if call in self._results:
            turn.status = "repeat"
            return turn, self._text(call), None
        cost = self._settings.costs[action.tool]
        if cost > self._left:
            turn.status = "out_of_budget"
            return turn, "", None
        result = await self._use(call)
        turn.seconds, turn.visual_tokens, turn.cached = result.seconds, result.visual_tokens, result.cached
        if result.text is None:
            turn.status = "no_caption"
            return turn, "", None
        self._results[call] = result
        self._open.update(node for node in [action.node, *result.nodes] if node is not None)
        self._left -= cost
        turn.cost, turn.left, turn.nodes = cost, self._left, list(result.nodes)
        return turn, self._text(call), result.clip

    def _fault(self, action: Action) -> Status | None:
        """Return what is wrong with the node of a call, None if it is open to it."""
        node = action.node
        assert node is not None
        if not self._tree.has_parts:
            return "short_video"
        if node not in self._tree or (action.tool == "caption" and len(node) == 1):
            return "bad_node"
        if action.tool in ("video_qa", "look") and len(node) < LEVELS:
            return "bad_node"
        is_open = not self._settings.parent_first or node in self._open or node[:-1] in self._open
        return None if is_open else "closed_node"

    def _text(self, call: ToolCall) -> str:
        result = self._results[call]
        if call.tool == "find":
            return search_text(self._tree, result.nodes)
        return part_line(self._tree, call.node or (), result.text or "")

    def _end(self, reason: EndReason) -> Observation | None:
        """End the episode: no observation follows."""
        self._trajectory.end_reason = reason
        return None
