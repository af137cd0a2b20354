"""What a reply asks for; any text can be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.navigate.calls import Action, parse_reply


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("caption(2,1)", Action("caption", (2, 1))),
        ("caption( 2 , 1 , 3 )", Action("caption", (2, 1, 3))),
        ("get_caption((2,1))", Action("caption", (2, 1))),
        ("get_caption((2,1,3,))", Action("caption", (2, 1, 3))),
        ("video_qa(2,1,3, what colour is the ring?)", Action("video_qa", (2, 1, 3), "what colour is the ring?")),
        ("video_qa((2,1,3), \"who, and\n where (if so)?\")", Action("video_qa", (2, 1, 3), "who, and where (if so)?")),
        ("video_qa(2,1,3, 4 rings or 5?)", Action("video_qa", (2, 1, 3), "4 rings or 5?")),
        ("look(2,1,3)", Action("look", (2, 1, 3))),
        ("find('a red ring')", Action("find", None, "a red ring")),
    ],
)  # fmt: skip
def test_calls_are_read(call, action):
    assert parse_reply(f"<think>x</think> <tool>{call}</tool>") == action


@pytest.mark.parametrize(
    "call",
    [
        "caption",
        "caption()",
        "caption(a)",
        "caption(2,1, why)",
        "video_qa(2,1,3)",
        "find()",
        "open(2,1)",
        "look(2,1",
        "",
    ],
)
def test_a_call_that_cannot_be_read_is_none(call):
    assert parse_reply(f"<tool>{call}</tool>") == Action()


def test_answers_are_read():
    assert parse_reply("<think>a</think><answer> Red. </answer>") == Action(words="Red.", is_answer=True)
    assert parse_reply("<answer>Unknown</answer>").abstains
    assert parse_reply("<answer> </answer>") == Action()


def test_the_last_element_decides_and_a_call_goes_before_an_answer():
    assert parse_reply("<tool>look(1,1,1)</tool><tool>look(1,1,2)</tool>").node == (1, 1, 2)
    assert parse_reply("<tool>look(1,1,1)</tool><answer>red</answer>").tool == "look"
    assert parse_reply("<answer>red<answer>blue</answer>").words == "blue"


@given(st.text(st.sampled_from("<>/tolanswercpi(),123\"'\n "), max_size=80) | st.text(max_size=60))
def test_any_text_gives_an_action(text):
    assert isinstance(parse_reply(text), Action)
