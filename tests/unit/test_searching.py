"""A served search without an engine: what its answer says when the time ends it in the middle."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pipelines.serve.agents.playing import ReplyTo
from pipelines.serve.agents.searching import Searching
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import SearchBody
from vsr1.episode.environment import PromptError
from vsr1.episode.trajectory import FinishReason
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

RANKING = [("a", 0.9), ("b", 0.5), ("c", 0.1)]
REJECTS = "<think>no ring</think><answer>not_matched</answer>"
ACCEPTS = "<think>a ring</think><answer>matched</answer><start>1.0</start><end>2.0</end>"


@dataclass
class ScriptedReply:
    text: str
    soft_tokens: np.ndarray | None = None
    latents: np.ndarray | None = None
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    token_ids: list[int] = field(default_factory=lambda: [4, 5])
    logprobs: list[float] = field(default_factory=lambda: [0.0, 0.0])
    finish_reason: FinishReason = "stop"
    seed: int = 0
    weight_version: int = 7


async def search(request: SearchRequest) -> SearchResult:
    left = [(video, score) for video, score in RANKING if video not in request.exclude]
    return SearchResult(left, None, dict(RANKING), "v1", np.ones(2, np.float32))


async def clip(video_id: str) -> Clip:
    return Clip.make(video_id, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4.0))


async def use(call: ToolCall) -> ToolResult:
    return ToolResult(f"seen {call.node}")


def scripted(texts: Sequence[str]) -> ReplyTo:
    """Return a policy whose turns say these texts; one that has none of its own never ends."""

    async def reply_to(prompt: Any, turn: int, agent: AgentConfig, on_text: Any) -> Any:
        if turn > len(texts):
            await asyncio.sleep(3600)
        on_text(texts[turn - 1])
        return ScriptedReply(texts[turn - 1])

    return reply_to


def play(*texts: str, limit_s: float = 10.0, long: bool = False, **body: Any) -> list[Event]:
    """Events of a search whose turns say these texts; one that has no text of its own never ends.

    Args:
        long: videos have 2000 seconds and are navigated.
    """

    async def load(video_id: str) -> Clip:
        return replace(await clip(video_id), length=2000.0) if long else await clip(video_id)

    async def events() -> list[Event]:
        agent = AgentConfig(refinement="none")
        navigate = NavigateConfig() if long else None
        searching = Searching(SearchBody(query="a ring", **body), agent, ("id", "toy", "small"), 7, limit_s, navigate)
        return [event async for event in searching.events(search, load, scripted(texts), use if long else None)]

    return asyncio.run(events())


def test_an_answer_is_made_of_its_turns() -> None:
    events = play(REJECTS, ACCEPTS)
    kinds = ["retrieved", "turn.started", "reasoning.delta", "verdict"]
    assert [event["type"] for event in events] == [*kinds, "refined", *kinds, "moment", "done"]
    result = events[-1]["result"]
    assert (result["status"], result["index_version"], result["weight_version"]) == ("matched", "v1", 7)
    assert [(turn["video_id"], turn["verdict"], turn["rank"]) for turn in result["turns"]] == [
        ("a", "not_matched", 1), ("b", "matched", 1),
    ]  # fmt: skip
    assert [turn["reasoning"] for turn in result["turns"]] == ["no ring", "a ring"]
    assert [row["video_id"] for row in result["turns"][0]["refined"]] == ["b", "c"]
    assert result["turns"][1]["refined"] is None
    usage = result["usage"]
    assert (usage["prompt_tokens"], usage["text_tokens"], usage["latent_tokens"]) == (6, 4, 0)
    [moment] = result["moments"]
    assert (moment["video_id"], moment["start"], moment["end"], moment["score"]) == ("b", 1.0, 2.0, 0.5)
    assert moment["thumbnail_url"] == "/v1/videos/b/thumbnail?t=1.50&corpus=toy"
    assert moment["deep_link"] == "/#q=a+ring&corpus=toy&v=b&t=1.00-2.00"


def test_calls_into_a_long_video_are_told_and_part_of_its_turn() -> None:
    look = "<think>in</think><tool>caption(1,1)</tool>"
    events = play(REJECTS, look, "no call", ACCEPTS, long=True, budget=3)
    asked = ["reasoning.delta", "called"]
    begun = ["retrieved", "turn.started"]
    assert [event["type"] for event in events] == [
        *begun, "reasoning.delta", "verdict", "refined", *begun, *asked, *asked, "reasoning.delta", "verdict", "moment",
        "done",
    ]  # fmt: skip
    assert {event["turn"] for event in events[7:13]} == {2}
    call = {"tool": "caption", "node": [1, 1], "start": 0.0, "end": 80.0, "words": "", "status": "ok", "left": 2.0}
    assert events[8] == {"type": "called", "turn": 2, "video_id": "b", **call}
    result = events[-1]["result"]
    assert [len(turn["calls"]) for turn in result["turns"]] == [0, 2] and result["turns"][1]["calls"][0] == call
    assert result["turns"][1]["calls"][1]["status"] == "malformed" and result["usage"]["text_tokens"] == 8
    assert [(moment["video_id"], moment["start"], moment["end"]) for moment in result["moments"]] == [("b", 1.0, 2.0)]
    partial = play(REJECTS, look, long=True, limit_s=0.3)[-1]["result"]
    assert (partial["status"], len(partial["turns"][1]["calls"])) == ("partial", 1)


@pytest.mark.parametrize("texts", [(), (REJECTS,)])
def test_a_search_that_the_time_ends_says_what_it_has(texts: tuple[str, ...]) -> None:
    """The turn that was not finished is among its turns, without a verdict."""
    result = play(*texts, limit_s=0.3)[-1]["result"]
    assert (result["status"], result["moments"], result["index_version"]) == ("partial", [], "v1")
    looks = [(turn["turn"], turn["video_id"], turn["verdict"]) for turn in result["turns"]]
    assert looks == [(1, "a", "not_matched"), (2, "b", None)] if texts else looks == [(1, "a", None)]
    assert result["usage"]["text_tokens"] == 2 * len(texts)


def test_a_score_below_the_threshold_is_no_moment() -> None:
    assert play(REJECTS, ACCEPTS, threshold=0.6)[-1]["result"]["status"] == "not_found"


def test_nothing_left_is_no_turn() -> None:
    result = play(REJECTS, exclude_ids=["b", "c"])[-1]["result"]
    assert (result["status"], len(result["turns"])) == ("not_found", 1)


def test_a_prompt_that_is_refused_is_refused_before_any_event() -> None:
    def refusing(wait: bool) -> list[str]:
        kinds = []

        async def reply_to(prompt: Any, turn: int, agent: AgentConfig, on_text: Any) -> Any:
            if wait:
                await asyncio.sleep(0.01)
            raise PromptError("too long")

        async def events() -> None:
            searching = Searching(SearchBody(query="a ring"), AgentConfig(), ("id", "toy", "small"), 7, 10.0)
            async for event in searching.events(search, clip, reply_to):
                kinds.append(event["type"])

        with pytest.raises(PromptError, match="too long"):
            asyncio.run(events())
        return kinds

    assert refusing(wait=False) == []
    assert refusing(wait=True) == ["retrieved", "turn.started"]


def test_an_error_of_a_part_comes_through() -> None:
    async def broken(request: SearchRequest) -> SearchResult:
        raise KeyError("a shard")

    async def events() -> None:
        searching = Searching(SearchBody(query="a ring"), AgentConfig(), ("id", "toy", "small"), 7, 10.0)
        async for _ in searching.events(broken, clip, lambda *_: pytest.fail("nothing was shown")):
            continue

    with pytest.raises(KeyError, match="a shard"):
        asyncio.run(events())
