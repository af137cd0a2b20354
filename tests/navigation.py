"""Episodes of navigation with given replies, and tools that are tables."""

import asyncio
from dataclasses import dataclass

from vsr1.episode.environment import Prompt, run_episode
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.record import NavigateTask, NavigateTrajectory
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy import navigators


@dataclass
class Spoken(navigators.Spoken):
    """A reply of a policy that writes what it is given, a token a letter."""

    seed: int = 1

    def __post_init__(self) -> None:
        self.token_ids = [ord(letter) for letter in self.text]
        self.logprobs = [-1.0] * len(self.text)


def task(**values) -> NavigateTask:
    settings = {
        "id": SampleId("p"), "question_id": "q", "film": "f", "seconds": 2000.0, "question": "what colour?",
        "budget": 4.0, "answer": "red", "clues": [(32.0, 48.0)],
    }  # fmt: skip
    return NavigateTask(**(settings | values))


def table(calls: list[ToolCall], **answers):
    """Tools that say which node they were asked about; `answers` by name of a tool take their place."""

    async def use(call: ToolCall) -> ToolResult:
        calls.append(call)
        return answers.get(call.tool) or ToolResult(f"{call.tool} of {call.node}", seconds=1.5, visual_tokens=7)

    return use


def play(replies, question=None, settings=None, use=None) -> tuple[list[Prompt], NavigateTrajectory]:
    """Play an episode with these replies; a policy that is asked for more of them fails."""
    prompts: list[Prompt] = []

    async def reply_to(prompt: Prompt, turn: int) -> Spoken:
        prompts.append(prompt)
        reply = replies[turn - 1]
        reply = Spoken(reply) if isinstance(reply, str) else reply
        reply.prompt_token_ids = prompt.token_ids(lambda text: [ord(letter) for letter in text], -1)
        return reply

    environment = NavigateEnvironment(question or task(), settings or NavigateConfig(), use or table([]))
    return prompts, asyncio.run(run_episode(environment, reply_to))


def call(text: str) -> str:
    return f"<think>next</think><tool>{text}</tool>"
