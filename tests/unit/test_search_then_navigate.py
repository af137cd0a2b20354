"""A search that navigates long films: every way through it, its rewards and its examples."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from long_search import RANKED, REJECTS, SEEN, Episode, matches
from navigation import Spoken, call, table

from vsr1.episode.environment import run_episode
from vsr1.episode.rewards import scored
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.tree import ClipTree
from vsr1.rl.credit import credits_of
from vsr1.search.environment import SearchEnvironment, SearchSettings
from vsr1.search_then_navigate.environment import Called
from vsr1.search_then_navigate.examples import long_search_examples
from vsr1.search_then_navigate.record import calls_of, judgements, spent, visits
from vsr1.search_then_navigate.rewards import SearchThenNavigateRewards
from vsr1.settings.navigate import NavigateRewardConfig
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, RewardConfig
from vsr1.video.clips import Clip


def test_videos_of_one_look_are_todays_search():
    replies, ranked = [REJECTS, matches(1, 3)], ["short", "long"]
    both = Episode(replies, ranked, one_look_s=2000.0)
    alone = Episode(replies, ranked, one_look_s=2000.0)
    task = both.trajectory.task
    alone.prompts = []
    environment = SearchEnvironment(task, SearchSettings.of(AgentConfig(), 3), alone.search, alone.clip)
    plain = asyncio.run(run_episode(environment, alone.reply_to))
    assert [prompt.parts[0] for prompt in both.prompts] == [prompt.parts[0] for prompt in alone.prompts]
    assert [turn.record for turn in both.trajectory.turns] == [turn.record for turn in plain.turns]
    assert both.trajectory.end_reason == plain.end_reason == "matched" and both.calls == []
    assert [turn.number for turn in both.trajectory.turns] == [1, 2]


def test_a_long_film_is_navigated_and_its_moment_answered():
    episode = Episode([*SEEN, matches(36, 44)])
    assert episode.kinds == ["ok", "ok", "matched"] and episode.trajectory.end_reason == "matched"
    assert 'Query: "a red ring"' in episode.text(0) and "The video has 2000 seconds." in episode.text(0)
    assert "Left: 4." in episode.text(0) and "Left: 2." in episode.text(2) and episode.prompts[0].clips == []
    assert episode.trajectory.last.record.span == (36, 44)
    assert [turn.continues for turn in episode.trajectory.turns] == [False, True, True]
    for before, after in zip(episode.trajectory.turns, episode.trajectory.turns[1:], strict=False):
        start = before.prompt_token_ids + before.response_token_ids
        assert after.prompt_token_ids[: len(start)] == start
    [visit] = visits(episode.trajectory)
    assert visit.nodes == [(1, 1), (1, 1, 3)] and spent(episode.trajectory) == 2
    assert {turn.record.index_version for turn in episode.trajectory.turns} == {"v1"}


@pytest.mark.parametrize(
    ("span", "answer"), [((30, 60), (32, 48)), ((0, 2000), (32, 48)), ((40, 47), (40, 47)), ((36, 9999), (36, 48))]
)
def test_a_match_is_cut_to_what_was_looked_into(span, answer):
    assert Episode([*SEEN, matches(*span)]).trajectory.last.record.span == answer


@pytest.mark.parametrize("reply", [matches(100, 120), "<answer>matched</answer>", matches(44, 36)])
def test_a_match_outside_the_frontier_is_no_match_and_may_be_mended(reply):
    episode = Episode([*SEEN, reply, matches(36, 44)])
    assert episode.kinds == ["ok", "ok", "unseen", "matched"]
    assert "You have not looked into that part." in episode.text(3) and "Left: 2." in episode.text(3)


def test_a_match_without_a_look_ends_the_film_once_the_free_turns_are_spent():
    episode = Episode([matches(36, 44), matches(36, 44)], free_turns=1)
    assert episode.kinds == ["unseen", "unknown"] and episode.trajectory.end_reason == "no_refinement"
    assert episode.trajectory.last.record.span is None and spent(episode.trajectory) == 0


def test_a_rejection_refines_by_latents_and_the_next_film_has_what_is_left():
    episode = Episode([*SEEN, REJECTS, REJECTS, call("caption(2,1)"), REJECTS])
    assert episode.kinds == ["ok", "ok", "not_matched", "not_matched", "ok", "not_matched"]
    assert episode.trajectory.end_reason == "max_turns"
    assert [visit.judgement.record.video_id for visit in visits(episode.trajectory)] == RANKED
    assert episode.prompts[3].clips[0].video_id == "short" and episode.prompts[4].clips == []
    assert "Left: 2." in episode.text(4) and "Left: 1." in episode.text(5)
    np.testing.assert_array_equal(episode.requests[1].soft_tokens, np.full((8, 4), 3.0))
    assert [len(request.exclude) for request in episode.requests] == [0, 1, 2, 3]
    assert [bool(turn.latents) for turn in episode.trajectory.turns] == [False, False, True, True, False, True]
    assert {(call.film, call.node) for call in episode.calls if call.node and len(call.node) > 1} == {
        ("long", (1, 1)), ("long", (1, 1, 3)), ("longer", (2, 1)),
    }  # fmt: skip


def test_a_rejection_refines_in_words():
    words = "<answer>not_matched</answer><query>a ring that is red</query> <REFINE>"
    episode = Episode([SEEN[0], words, matches(1, 2)], refinement="text")
    assert [request.query for request in episode.requests] == ["a red ring", "a ring that is red"]
    assert "inside <query> </query>" in episode.text(0)


def test_a_budget_that_is_spent_asks_for_a_judgement():
    episode = Episode([*SEEN, matches(36, 44)], budget=2.0)
    assert "Left: 0. Answer now." in episode.text(2) and episode.trajectory.end_reason == "matched"


def test_a_call_beyond_the_budget_rejects_the_film_and_the_next_one_comes():
    episode = Episode([*SEEN, call("caption(1,2)"), matches(1, 2)], budget=2.0, refinement="none")
    assert episode.kinds == ["ok", "ok", "unknown", "matched"]
    assert episode.trajectory.turns[2].record.verdict == "unknown" and spent(episode.trajectory) == 2
    assert episode.trajectory.last.record.video_id == "short"


def test_a_film_without_any_budget_left_can_only_be_rejected():
    episode = Episode([matches(36, 44), REJECTS, REJECTS], budget=0.0, refinement="none")
    assert episode.kinds == ["unknown", "not_matched", "not_matched"]
    assert "Left: 0. Answer now." in episode.text(0) and not episode.trajectory.turns[0].continues


def test_calls_that_cannot_be_read_cost_free_turns_and_then_the_film():
    cut = Spoken(call("caption(1,1)"), finish_reason="length")
    replies = ["no tags", call("caption(9,9)"), cut, call("dance(1,1)"), matches(1, 2)]
    episode = Episode(replies, refinement="none", free_turns=3)
    assert episode.kinds == ["malformed", "bad_node", "malformed", "unknown", "matched"]
    assert spent(episode.trajectory) == 0 and episode.trajectory.last.record.video_id == "short"


def test_a_look_shows_its_clip_and_the_judgement_has_it():
    looked = Clip.make("long@1.1.3", np.zeros((2, 8, 8, 3), np.uint8), np.array([33.0, 41.0]), 2000.0)
    episode = Episode([SEEN[0], call("look(1,1,3)"), matches(36, 44)], use=table([], look=ToolResult("", looked)))
    assert [[clip.video_id for clip in turn.clips] for turn in episode.trajectory.turns] == [[], [], ["long@1.1.3"]]
    assert episode.trajectory.last.record.span == (36, 44)


def test_a_tool_that_fails_loses_the_episode():
    async def use(call: ToolCall) -> ToolResult:
        raise ToolError("the captioner is gone")

    with pytest.raises(ToolError, match="the captioner is gone"):
        Episode(SEEN, use=use)


def test_a_lost_episode_goes_on_from_its_finished_turns():
    replies = [*SEEN, REJECTS, REJECTS, call("caption(2,1)"), REJECTS]
    whole = Episode(replies)
    for turns in range(1, len(replies)):
        again = Episode(replies, finished=whole.finished[:turns])
        assert len(again.prompts) == len(replies) - turns
        assert [turn.record for turn in again.trajectory.turns] == [turn.record for turn in whole.trajectory.turns]


def test_who_watches_hears_of_calls_and_judgements():
    events = Episode([*SEEN, matches(36, 44)]).events
    assert [type(event).__name__ for event in events] == ["Retrieved", "TurnStarted", "Called", "Called", "Judged"]
    called = next(event for event in events if isinstance(event, Called))
    assert (called.turn, called.film, called.call.node, called.call.left) == (1, "long", (1, 1), 3.0)
    assert called.span == (0.0, 80.0)


def terms(episode, budget=None):
    trajectory = episode.trajectory
    if budget is not None:
        trajectory = replace(trajectory, task=replace(trajectory.task, budget=budget))
    return scored(trajectory, SearchThenNavigateRewards(RewardConfig(), NavigateRewardConfig()))


def test_the_terms_of_both_are_bounded_and_named_apart():
    right = terms(Episode([*SEEN, matches(36, 44)]))
    assert right.terms == pytest.approx({
        "verification": 1, "think_format": 1, "time_format": 1, "temporal_iou": 1, "refine_presence": 1,
        "retrieval": 0, "location": 1, "repeat": 0, "thrift": 0.5,
    })  # fmt: skip
    assert [sorted(turn) for turn in right.turn_terms[:-1]] == [[], []]
    assert terms(Episode([*SEEN, matches(36, 44)]), budget=0.0).terms["thrift"] == 0

    wrong = terms(Episode([SEEN[0], SEEN[0], REJECTS, REJECTS, REJECTS]))
    assert wrong.terms["verification"] == pytest.approx((-1 + 1 + 1) / 3)  # of three judgements, not of five turns
    assert (wrong.terms["repeat"], wrong.terms["thrift"]) == (0.5, 0)
    assert wrong.terms["location"] == pytest.approx(2 * 16 / (80 + 16))
    short = terms(Episode([matches(1, 2)], ["short"]))
    assert short.terms["location"] == short.terms["repeat"] == 0


def test_judgements_are_an_example_each_and_the_calls_into_a_film_one():
    episodes = [terms(Episode([*SEEN, REJECTS, matches(1, 2)])), terms(Episode([*SEEN, matches(36, 44)]))]
    episodes[1] = replace(episodes[1], task=replace(episodes[1].task, id=SampleId("p", 1)))
    stage = GrpoConfig()
    credits = credits_of(episodes, stage.objective, 96)
    examples = long_search_examples(episodes, credits, stage, AgentConfig())
    assert [len(one.turns) for one in episodes] == [4, 3] and len(examples) == 5
    judged, called = examples[:3], examples[3:]
    assert [example.target is not None for example in judged] == [True, False, False]
    assert [example.target for example in called] == [None, None]
    assert [sum(example.trained) for example in called] == [
        sum(len(turn.response_token_ids) for turn in calls_of(one)) for one in episodes
    ]
    assert judged[2].sampled.advantage > 0 > judged[0].sampled.advantage
    assert len(judgements(episodes[0]).turns) == 2 and len(calls_of(episodes[0])) == 2


def test_the_part_of_a_span_that_was_seen_is_its_longest_stretch():
    tree = ClipTree.of(2000)  # leaves of 16 s
    assert tree.seen_part((30, 100), {2, 3, 5}) == (32, 64)
    assert tree.seen_part((30, 34), {0, 1, 2}) == (30, 34)
    assert tree.seen_part((30, 34), {5}) is None and tree.seen_part((30, 34), set()) is None
    assert tree.frontier([(1, 1), (1, 1, 3), (1, 2)]) == {2, 5, 6, 7, 8, 9}
