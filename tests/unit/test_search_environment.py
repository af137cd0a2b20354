"""An episode of the search environment: what it asks of the retrieval, turn by turn."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from vsr1.episode.environment import Prompt, run_episode
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import FinishReason
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.environment import SearchEnvironment, SearchSettings
from vsr1.search.record import SearchTask, SearchTurn
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip

N, E = 8, 4  # soft tokens of a reply, and their width
SCORES = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}  # d is found by no search, but known to the corpus
REJECTS = "<think> no </think> <answer>not_matched</answer> <REFINE>"
ACCEPTS = "<think> yes </think> <answer>matched</answer> <start>1.0</start> <end>3.0</end> <REFINE>"


@dataclass
class ScriptedReply:
    text: str
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2])
    token_ids: list[int] = field(default_factory=lambda: [3])
    logprobs: list[float] = field(default_factory=lambda: [-0.5])
    finish_reason: FinishReason = "stop"
    latents: np.ndarray | None = None
    soft_tokens: np.ndarray | None = field(default_factory=lambda: np.ones((N, E), np.float32))
    seed: int = 0
    weight_version: int = 0


class MovingCorpus:
    """Answers from videos a, b, c; its version changes after every search, as if videos came in all the time."""

    def __init__(self) -> None:
        self.asked: list[SearchRequest] = []

    async def search(self, request: SearchRequest) -> SearchResult:
        self.asked.append(request)
        left = [(video, 1.0 - i / 4) for i, video in enumerate("abc") if video not in request.exclude]
        version = request.index_version or f"v{len(self.asked)}"
        scores = {video: SCORES[video] for video in request.scores_of}
        return SearchResult(left[: request.k], 2, scores, version, np.ones(4, np.float32))


async def load_clip(video_id: str) -> Clip:
    return Clip.make(video_id, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4.0))


def play(
    replies: list[str],
    max_turns: int = 3,
    accumulate: bool = False,
    first_video: str | None = None,
    refinement: Literal["latents", "text", "none"] = "latents",
    rank_by_depth: bool = False,
    ends_when_lost: bool = False,
) -> tuple[MovingCorpus, SearchEnvironment]:
    """The reply of turn t brings soft tokens and latents that are all t, and seed 10 t."""
    corpus = MovingCorpus()
    task = SearchTask(
        SampleId("0/1_fig"), "1_fig", "a red ring", "b", (1.0, 3.0), 4.0, ["c"],
        first_video=first_video, ends_when_lost=ends_when_lost,
    )  # fmt: skip
    agent = AgentConfig(
        max_turns=max_turns, refinement=refinement, latents_of_turns="accumulate" if accumulate else "replace"
    )
    settings = SearchSettings(agent, "judge", top_k=2, rank_by_depth=rank_by_depth)
    environment = SearchEnvironment(task, settings, corpus.search, load_clip)

    async def reply_to(prompt: Prompt, turn: int) -> ScriptedReply:
        assert [type(part) for part in prompt.parts] == [str, Clip, str]  # a fresh prompt each turn
        values = np.full((N, E), float(turn), np.float32)
        return ScriptedReply(replies[turn - 1], latents=values, soft_tokens=values, seed=10 * turn)

    asyncio.run(run_episode(environment, reply_to))
    return corpus, environment


def records(environment: SearchEnvironment) -> list[SearchTurn]:
    return [turn.record for turn in environment.trajectory().turns]


def test_the_ranking_after_a_refinement_is_the_one_before_the_next_turn() -> None:
    first, second = records(play([REJECTS, REJECTS], max_turns=2)[1])
    assert first.retrieved_after == second.retrieved
    assert [video for video, _ in second.retrieved_after or []] == ["c"]  # a and b are rejected


def test_a_trajectory_sees_one_version_of_the_corpus() -> None:
    corpus, environment = play([REJECTS, REJECTS, REJECTS])
    assert [request.index_version for request in corpus.asked] == [None, "v1", "v1", "v1"]
    assert {record.index_version for record in records(environment)} == {"v1"}


def test_rejected_videos_are_excluded_and_a_match_ends_the_episode() -> None:
    corpus, environment = play([REJECTS, ACCEPTS])
    assert [request.exclude for request in corpus.asked] == [[], ["a"]]  # the match is not followed by a search
    trajectory = environment.trajectory()
    assert [record.video_id for record in records(environment)] == ["a", "b"]
    assert trajectory.end_reason == "matched"
    assert trajectory.last.record.span == (1.0, 3.0)


def test_an_episode_can_end_where_the_right_video_is_lost() -> None:
    _, environment = play([REJECTS] * 3, ends_when_lost=True)
    trajectory = environment.trajectory()
    assert [record.video_id for record in records(environment)] == ["a", "b"]  # b is the right one
    assert trajectory.end_reason == "lost"
    assert trajectory.last.record.gt_score_after is not None  # its refinement is rewarded all the same


def test_a_corpus_that_is_used_up_ends_the_episode() -> None:
    _, environment = play([REJECTS] * 4, max_turns=4)
    assert environment.trajectory().end_reason == "corpus_exhausted"
    assert len(environment.trajectory().turns) == 3


def test_latents_stay_with_their_turn_and_its_seed() -> None:
    _, environment = play([REJECTS, REJECTS, ACCEPTS])
    *rejecting, accepting = environment.trajectory().turns
    assert len(rejecting) == 2
    for number, turn in enumerate(rejecting, start=1):
        np.testing.assert_array_equal(turn.latents["query"], np.full((N, E), number))
        assert turn.seed == 10 * number
    assert (accepting.record.refined, accepting.latents, accepting.record.gt_rank_after) == (False, {}, None)


def test_a_given_first_video_is_shown_and_its_score_asked_for() -> None:
    corpus, environment = play([REJECTS, ACCEPTS], first_video="d")
    first, second = records(environment)
    assert (first.video_id, second.video_id) == ("d", "a")
    assert first.retrieved[0][0] == "a"  # what the search found stays what it was
    assert all("d" in request.scores_of for request in corpus.asked)
    # The negatives are c of the task and the video shown, without the right one.
    assert (first.gt_score_before, first.negative_scores_before) == (0.2, [0.3, 0.4])
    assert (first.gt_score_after, first.negative_scores_after) == (0.2, [0.3, 0.4])
    assert [request.exclude for request in corpus.asked] == [[], ["d"]]


def test_a_given_first_video_may_be_the_right_one() -> None:
    _, environment = play([ACCEPTS], first_video="b")
    [record] = records(environment)
    assert (record.video_id, record.span, environment.trajectory().end_reason) == ("b", (1.0, 3.0), "matched")
    assert record.negative_scores_before == [0.3]


@pytest.mark.parametrize(("accumulate", "turns"), [(False, [[1], [2], [3]]), (True, [[1], [1, 2], [1, 2, 3]])])
def test_refinements_replace_each_other_or_join(accumulate: bool, turns: list[list[int]]) -> None:
    corpus, _ = play([REJECTS, REJECTS, REJECTS], accumulate=accumulate)
    first, *refined = [request.soft_tokens for request in corpus.asked]
    assert first is None
    for tokens, parts in zip(refined, turns, strict=True):
        np.testing.assert_array_equal(tokens, np.repeat(np.array(parts, np.float32), N)[:, None].repeat(E, axis=1))


def test_refinement_in_new_words_searches_with_them() -> None:
    corpus, environment = play([f"{REJECTS} <query> a blue ring </query> <REFINE>", ACCEPTS], refinement="text")
    assert [(request.query, request.soft_tokens) for request in corpus.asked] == [
        ("a red ring", None), ("a blue ring", None),
    ]  # fmt: skip
    assert [record.rewrite for record in records(environment)] == ["a blue ring", None]
    assert environment.trajectory().end_reason == "matched"


@pytest.mark.parametrize("words", ["", "<query> </query>", "<query>no end"])
def test_without_new_words_the_episode_ends(words: str) -> None:
    _, environment = play([REJECTS + words], refinement="text")
    assert environment.trajectory().end_reason == "no_refinement"
    assert environment.trajectory().last.record.rewrite is None


def test_without_refinement_the_next_video_of_the_ranking_is_shown() -> None:
    corpus, environment = play([REJECTS, REJECTS, REJECTS], refinement="none")
    assert [record.video_id for record in records(environment)] == ["a", "b", "c"]
    assert {request.query for request in corpus.asked} == {"a red ring"}
    assert all(request.soft_tokens is None for request in corpus.asked)


def test_one_refinement_is_ranked_by_each_number_of_its_latents() -> None:
    corpus, environment = play([REJECTS, REJECTS], max_turns=2, accumulate=True, rank_by_depth=True)
    lengths = [0 if request.soft_tokens is None else len(request.soft_tokens) for request in corpus.asked]
    assert lengths == [0, N, *range(1, N), 2 * N, *range(N + 1, 2 * N)]
    assert [record.ranks_by_depth for record in records(environment)] == [[2] * N, [2] * N]
    _, plain = play([REJECTS, REJECTS], max_turns=2)
    assert records(plain)[0].ranks_by_depth is None
