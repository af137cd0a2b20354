"""An agent without an engine, behind the handle of the real one: it accepts the video that an annotation names.

One query is answered late by whatever is shown then, so that there is something to refine.

Its searches are real episodes over the real library; only the replies are written here instead of sampled, word by
word as an engine would.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray import serve

from pipelines.serve.agents.playing import OnText
from pipelines.serve.agents.searching import Searching
from pipelines.serve.deploy import bind
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import SearchBody
from pipelines.serve.library.library import node_id
from vsr1.config import Config
from vsr1.episode.environment import Prompt, PromptError
from vsr1.episode.trajectory import FinishReason
from vsr1.formats.annotations import Annotation, read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.parts import AgentConfig

WORD_S = 0.01  # from one word to the next, in answers that a test follows: of annotated queries, and of such ones:
FOLLOWED = "what "
LONGEST_PROMPT = 2000  # characters
LATE = "what only the third video shows"  # whichever that is
LATE_TURN, LATE_SPAN = 3, (2.0, 6.0)


@dataclass
class ScriptedReply:
    """A `PolicyReply`; each word counts as one token."""

    text: str
    soft_tokens: np.ndarray | None  # [N, dim] float32
    prompt_token_ids: list[int] = field(default_factory=lambda: [0] * 10)
    finish_reason: FinishReason = "stop"
    seed: int = 0
    weight_version: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [0] * len(self.text.split(" "))

    @property
    def logprobs(self) -> list[float]:
        return [0.0] * len(self.token_ids)

    @property
    def latents(self) -> np.ndarray | None:
        return self.soft_tokens


def annotations_of(config: Config, corpus: str) -> dict[str, Annotation]:
    """Return the first annotation of each query."""
    served = config.serve.corpora[corpus]
    rows = read_annotations(DatasetFolder(served.root).annotations(served.split))
    return {row.fig_desc: row for row in reversed(rows)}


def script(query: str, video_id: str, span: tuple[float, float] | None) -> str:
    """Return what the agent says of a video that has what is asked for in this span, or not at all."""
    if span is None:
        return f"<think>The clip {video_id} does not show {query}</think><answer>not_matched</answer>"
    times = f"<start>{span[0]}</start><end>{span[1]}</end>"
    return f"<think>The clip {video_id} shows {query}</think><answer>matched</answer>{times}"


def late_script(turn: int, video_id: str) -> str:
    """Return what the agent says in a turn of the query `LATE`."""
    return script(LATE, video_id, LATE_SPAN if turn == LATE_TURN else None)


class ScriptedAgent:
    """The interface of `AgentReplica`."""

    def __init__(self, config: Config, name: str, library: Any) -> None:
        self._config, self._name, self._library = config, name, library

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        assert wanted["version"] == 0, "a scripted agent has no weights to swap"

    async def check_health(self) -> None:
        return

    async def search(self, search_id: str, body: SearchBody, corpus: str) -> AsyncIterator[Event]:
        retrieval, clips = (await self._library.parts.remote(node_id()))[corpus]
        moment = annotations_of(self._config, corpus).get(body.query)
        dim = (await retrieval.describe.remote())["dim"]

        async def reply(prompt: Prompt, turn: int, agent: AgentConfig, on_text: OnText) -> ScriptedReply:
            length = sum(len(part) for part in prompt.parts if isinstance(part, str))
            if length > LONGEST_PROMPT:
                raise PromptError(f"the prompt has {length} characters, more than {LONGEST_PROMPT}")
            [video_id] = [clip.video_id for clip in prompt.clips]
            span = moment.time if moment and moment.video == video_id else None
            text = late_script(turn, video_id) if body.query == LATE else script(body.query, video_id, span)
            pause_s = WORD_S if moment or body.query.startswith(FOLLOWED) else 0.0
            for number, word in enumerate(text.split(" ")):
                await asyncio.sleep(pause_s)
                on_text(word if number == 0 else f" {word}")
            refines = "not_matched" in text
            soft = np.random.default_rng(turn).normal(size=(agent.depth, dim)).astype(np.float32) if refines else None
            return ScriptedReply(text, soft)

        names = (search_id, corpus, self._name)
        searching = Searching(body, self._config.agent, names, 0, self._config.serve.request_limit_s)

        async for event in searching.events(retrieval.search.remote, clips.get.remote, reply):
            yield event


ScriptedAgents: Any = serve.deployment(ScriptedAgent)


def application(config: Config) -> serve.Application:
    """Return the served application with scripted agents; Serve imports it by its name."""
    return bind(config, ScriptedAgents)


application.__module__ = "tests.contract.library.scripted"  # pytest gives it a name that no worker can import
