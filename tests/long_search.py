"""Episodes of searches that navigate long films, with given replies, over three videos."""

import asyncio

import numpy as np
from navigation import Spoken, call, table

from vsr1.episode.environment import finished_turn, replies_of
from vsr1.episode.sample import SampleId
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.environment import SearchSettings
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

SECONDS = {"short": 40.0, "long": 2000.0, "longer": 4000.0}  # K of the second one is 5, of the third 6
RANKED = ["long", "short", "longer"]
REJECTS = "<think>no</think> <answer>not_matched</answer> <REFINE>"
SEEN = [call("caption(1,1)"), call("caption(1,1,3)")]  # of the film of 2000 s: 0-80 s, then 32-48 s


def matches(start: float, end: float) -> str:
    return f"<think>yes</think> <answer>matched</answer> <start>{start}</start> <end>{end}</end> <REFINE>"


class Episode:
    """Plays replies over three videos; a policy that is asked for more than there are fails."""

    def __init__(self, replies, ranked=None, refinement="latents", use=None, budget=4.0, finished=(), **navigate):
        self.prompts, self.calls, self.events, self.requests, self.finished = [], [], [], [], []
        self.ranked, self.replies = ranked or RANKED, replies
        agent = AgentConfig(refinement=refinement, max_turns=3)
        task = LongSearchTask(SampleId("p"), "q", "a red ring", "long", (36.0, 44.0), 2000.0, ["longer"], budget=budget)
        self.environment = SearchThenNavigateEnvironment(
            task, SearchSettings.of(agent, 3), NavigateConfig(**navigate), self.search, self.clip,
            use or table(self.calls), self.events.append,
            finished[0].index_version if finished else None,
        )  # fmt: skip
        asyncio.run(self.play(finished))
        self.trajectory = self.environment.trajectory()

    async def play(self, finished):
        async for reply in replies_of(self.environment, self.reply_to, finished):
            turn = self.environment.trajectory().last
            self.finished.append(finished_turn(turn, reply.soft_tokens, turn.record.index_version))

    async def search(self, request: SearchRequest) -> SearchResult:
        self.requests.append(request)
        left = [(video, 1 - place / 4) for place, video in enumerate(self.ranked) if video not in request.exclude]
        scores = dict.fromkeys(request.scores_of, 0.5)
        return SearchResult(left[: request.k], 1, scores, request.index_version or "v1", np.ones(4, np.float32))

    async def clip(self, video_id: str) -> Clip:
        return Clip.make(video_id, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4.0), SECONDS[video_id])

    async def reply_to(self, prompt, turn):
        self.prompts.append(prompt)
        reply = Spoken(self.replies[turn - 1]) if isinstance(self.replies[turn - 1], str) else self.replies[turn - 1]
        reply.prompt_token_ids = prompt.token_ids(lambda text: [ord(letter) for letter in text], -1)
        if "not_matched" in reply.text:
            reply.latents = reply.soft_tokens = np.full((8, 4), float(turn), np.float32)
        return reply

    def text(self, number: int) -> str:
        """Return what the prompt of a turn says in addition, from 0."""
        return "".join(part for part in self.prompts[number].parts[-3:] if isinstance(part, str))

    @property
    def kinds(self) -> list[str]:
        return [getattr(turn.record, "status", None) or turn.record.verdict for turn in self.trajectory.turns]
