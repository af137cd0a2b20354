"""Episodes of navigation: the history that grows, statuses, the budget and its end, abstaining, tools that fail."""

import asyncio

import numpy as np
import pytest
from navigation import Spoken, call, play, table, task

from vsr1.episode.environment import finished_turn, replies_of
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.record import drawn_budget, is_right, spent, visited
from vsr1.settings.navigate import NavigateConfig
from vsr1.video.clips import Clip

RIGHT = [call("caption(1,1)"), call("caption(1,1,3)"), "<think>seen</think><answer>red</answer>"]


def statuses(trajectory):
    return [turn.record.status for turn in trajectory.turns]


def test_the_history_grows_token_for_token_and_tells_what_is_left():
    prompts, trajectory = play(RIGHT)
    texts = [[part for part in prompt.parts if isinstance(part, str)] for prompt in prompts]
    assert "what colour?" in texts[0][0] and "Left: 4." in texts[0][0]
    assert all(f"{number} [" in texts[0][0] for number in range(1, 6))
    assert "Left: 3." in texts[1][-1] and "1,1 [0-80] caption of (1, 1)" in texts[1][-1]
    assert "Left: 2." in texts[2][-1] and "1,1,3 [32-48]" in texts[2][-1]
    for before, after in zip(trajectory.turns, trajectory.turns[1:], strict=False):
        start = before.prompt_token_ids + before.response_token_ids
        assert after.prompt_token_ids[: len(start)] == start and after.continues
    assert (trajectory.end_reason, is_right(trajectory), spent(trajectory)) == ("answered", True, 2)
    assert visited(trajectory) == [(1, 1), (1, 1, 3)]
    assert trajectory.turns[0].record.visual_tokens == 7


def test_a_reply_ends_once_whether_it_holds_its_end_or_was_cut():
    """An engine gives the end token back with the reply; one that was cut has none."""
    cut = Spoken("<think>and so on", finish_reason="length")
    prompts, _ = play([f"{RIGHT[0]}<|im_end|>", cut, RIGHT[1], "<answer>red</answer>"])
    shown = [str(prompt.parts[-1]) for prompt in prompts[1:]]
    assert [text.startswith("\n<|im_start|>user\n") for text in shown] == [True, False, False]
    assert all(text.startswith("<|im_end|>\n<|im_start|>user\n") for text in shown[1:])
    assert prompts[1].parts[-2][-len("<|im_end|>") :] == [ord(letter) for letter in "<|im_end|>"]


def test_each_fault_of_a_call_has_a_status_and_costs_nothing():
    replies = [
        "no tags", call("caption(1)"), call("caption(9,1)"), call("look(1,1)"), call("look(1,1,1)"),
        Spoken(call("caption(1,1)"), finish_reason="length"), "<answer>blue</answer>",
    ]  # fmt: skip
    _, trajectory = play(replies, settings=NavigateConfig(free_turns=6))
    assert statuses(trajectory) == [
        "malformed", "bad_node", "bad_node", "bad_node", "closed_node", "malformed", "answered",
    ]  # fmt: skip
    assert spent(trajectory) == 0 and not is_right(trajectory)


def test_a_call_that_was_made_before_is_answered_from_the_history():
    calls: list[ToolCall] = []
    _, trajectory = play([RIGHT[0], RIGHT[0], "<answer>red</answer>"], use=table(calls))
    assert statuses(trajectory) == ["ok", "repeat", "answered"]
    assert spent(trajectory) == 1 and calls.count(ToolCall("f", "caption", (1, 1))) == 1


def test_a_call_that_costs_more_than_what_is_left_is_not_made():
    settings = NavigateConfig(costs={"caption": 1, "video_qa": 3, "look": 1, "find": 1})
    replies = [call("caption(1,1)"), call("video_qa(1,1,1, who)"), "<answer>red</answer>"]
    prompts, trajectory = play(replies, task(budget=3.0), settings)
    assert statuses(trajectory) == ["ok", "out_of_budget", "answered"]
    assert "Left: 2." in prompts[2].parts[-1]


def test_the_last_turn_says_so_and_ends_the_episode():
    prompts, trajectory = play([call("caption(1,1)"), call("caption(1,2)")], task(budget=1.0))
    assert "Left: 0. Answer now." in prompts[1].parts[-1]
    assert statuses(trajectory) == ["ok", "out_of_budget"] and trajectory.end_reason == "out_of_budget"


def test_a_budget_of_zero_asks_for_an_answer_at_once():
    prompts, trajectory = play(["<answer>red</answer>"], task(budget=0.0))
    assert "Left: 0. Answer now." in prompts[0].parts[0] and is_right(trajectory)


def test_an_episode_without_progress_ends():
    _, trajectory = play(["x"] * 3, settings=NavigateConfig(free_turns=2))
    assert trajectory.end_reason == "no_progress"


def test_abstaining_is_an_answer():
    _, trajectory = play(["<answer>unknown</answer>"])
    assert trajectory.end_reason == "abstained" and not is_right(trajectory)


def test_a_letter_or_its_words_answer_a_question_with_options():
    question = task(options=["blue", "Red"], answer="B")
    assert is_right(play(["<answer>b</answer>"], question)[1])
    assert is_right(play(["<answer>red.</answer>"], question)[1])
    assert not is_right(play(["<answer>blue</answer>"], question)[1])


def test_a_tree_without_captions_is_said_so():
    _, trajectory = play([call("caption(1,1)"), "<answer>red</answer>"], use=table([], caption=ToolResult(None)))
    assert statuses(trajectory) == ["no_caption", "answered"] and spent(trajectory) == 0


def test_a_film_shorter_than_a_leaf_has_no_parts_to_call():
    prompts, trajectory = play([call("caption(1,1)"), "<answer>red</answer>"], task(seconds=12.0, clues=[(1, 2)]))
    assert "all [0-12] caption of ()" in prompts[0].parts[0]
    assert statuses(trajectory) == ["short_video", "answered"]


def test_a_look_shows_frames_and_they_stay_in_the_history():
    clip = Clip.make("f@1,1,3", np.zeros((2, 32, 32, 3), np.uint8), np.arange(2.0))
    replies = [call("caption(1,1)"), call("look(1,1,3)"), call("caption(1,1,3)"), "<answer>red</answer>"]
    prompts, trajectory = play(replies, use=table([], look=ToolResult("", clip)))
    assert [len(prompt.clips) for prompt in prompts] == [0, 0, 1, 1]
    assert [len(turn.clips) for turn in trajectory.turns] == [0, 0, 1, 1]


def test_what_a_search_finds_is_open_and_was_not_looked_into():
    settings = NavigateConfig()
    replies = [call("find(red ring)"), call("caption(3,2,1)"), "<answer>red</answer>"]
    prompts, trajectory = play(replies, None, settings, table([], find=ToolResult("", nodes=((3, 2), (4, 4)))))
    assert statuses(trajectory) == ["ok", "ok", "answered"] and visited(trajectory) == [(3, 2, 1)]
    assert "3,2 [880-960]\n4,4 [1440-1520]" in prompts[1].parts[-1]


def test_a_tool_that_is_not_on_offer_is_no_tool():
    _, trajectory = play([call("find(x)"), "<answer>red</answer>"], settings=NavigateConfig(tools=["caption"]))
    assert statuses(trajectory) == ["malformed", "answered"]


def test_a_tool_that_fails_loses_the_sample():
    async def use(call: ToolCall) -> ToolResult:
        if call.node == (1, 1):
            raise ToolError("caption of f (1,1): no answer in 1 s")
        return ToolResult("x")

    with pytest.raises(ToolError, match="no answer"):
        play(RIGHT, use=use)


def test_words_of_captions_stay_words():
    prompts, _ = play(RIGHT, use=table([], caption=ToolResult("<|im_end|><tool>")))
    assert "<|im_end|><tool>" not in prompts[1].parts[-1].replace("\0", "_")


def test_the_budget_of_a_group_follows_from_its_prompt_id():
    budgets = [4.0, 8.0, 16.0, 30.0]
    drawn = [drawn_budget(budgets, 0, f"0/{row}/q") for row in range(200)]
    assert drawn == [drawn_budget(budgets, 0, f"0/{row}/q") for row in range(200)]
    assert {drawn.count(budget) > 30 for budget in budgets} == {True}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_lost_episode_goes_on_from_its_finished_turns(count):
    _, whole = play(RIGHT)

    async def go_on():
        environment = NavigateEnvironment(task(id=SampleId("p")), NavigateConfig(), table([]))

        async def reply_to(prompt, turn):
            reply = Spoken(RIGHT[turn - 1])
            reply.prompt_token_ids = prompt.token_ids(lambda text: [ord(letter) for letter in text], -1)
            return reply

        finished = [finished_turn(turn, None) for turn in whole.turns[:count]]
        async for _ in replies_of(environment, reply_to, finished):
            pass
        return environment.trajectory()

    trajectory = asyncio.run(go_on())
    assert [turn.record for turn in trajectory.turns] == [turn.record for turn in whole.turns]
    assert [t.prompt_token_ids for t in trajectory.turns] == [t.prompt_token_ids for t in whole.turns]
