"""An episode of the search environment: what it asks of the retrieval, turn by turn."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from vsr1.agent.environment import Observation, run_episode
from vsr1.agent.search import SearchEnvironment, SearchSettings, SearchTask
from vsr1.formats.clips import Clip
from vsr1.retrieval.request import SearchRequest, SearchResult

REJECTS = "<think> no </think> <answer>not_matched</answer> <REFINE>"
ACCEPTS = "<think> yes </think> <answer>matched</answer> <start>1.0</start> <end>3.0</end> <REFINE>"


@dataclass
class ScriptedReply:
    text: str
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2])
    token_ids: list[int] = field(default_factory=lambda: [3])
    logprobs: list[float] = field(default_factory=lambda: [-0.5])
    finish_reason: str = "stop"
    latents: np.ndarray | None = None
    soft_tokens: np.ndarray | None = field(default_factory=lambda: np.ones((8, 4), np.float32))
    weight_version: int = 0


class MovingCorpus:
    """Answers from videos a, b, c; its version changes after every search, as if videos came in all the time."""

    def __init__(self) -> None:
        self.asked: list[SearchRequest] = []

    async def search(self, request: SearchRequest) -> SearchResult:
        self.asked.append(request)
        left = [(video, 1.0 - i / 4) for i, video in enumerate("abc") if video not in request.exclude]
        version = request.index_version or f"v{len(self.asked)}"
        scores = {video: 0.5 for video in request.scores_of}
        return SearchResult(left[: request.k], not left, 2, scores, version, np.ones(4, np.float32))


async def load_clip(video_id: str) -> Clip:
    return Clip.make(video_id, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4.0))


def play(replies: list[str], max_turns: int = 3) -> tuple[MovingCorpus, SearchEnvironment]:
    corpus = MovingCorpus()
    task = SearchTask("1_fig", "a red ring", "b", (1.0, 3.0), 4.0, negatives=["c"])
    environment = SearchEnvironment(task, SearchSettings(max_turns, 2, True, "judge"), corpus.search, load_clip)

    async def reply_to(observation: Observation, turn: int) -> ScriptedReply:
        return ScriptedReply(replies[turn - 1])

    asyncio.run(run_episode(environment, reply_to))
    return corpus, environment


def test_a_trajectory_sees_one_version_of_the_corpus() -> None:
    corpus, environment = play([REJECTS, REJECTS, REJECTS])
    assert [request.index_version for request in corpus.asked] == [None, "v1", "v1", "v1"]
    assert {segment.index_version for segment in environment.trajectory().segments} == {"v1"}


def test_rejected_videos_are_excluded_and_a_match_ends_the_episode() -> None:
    corpus, environment = play([REJECTS, ACCEPTS])
    assert [request.exclude for request in corpus.asked] == [[], ["a"], ["a"]]
    trajectory = environment.trajectory()
    assert [segment.video_id for segment in trajectory.segments] == ["a", "b"]
    assert trajectory.end_reason == "matched"
    assert trajectory.segments[-1].span == (1.0, 3.0)


def test_a_corpus_that_is_used_up_ends_the_episode() -> None:
    _, environment = play([REJECTS] * 4, max_turns=4)
    assert environment.trajectory().end_reason == "corpus_exhausted"
    assert len(environment.trajectory().segments) == 3
