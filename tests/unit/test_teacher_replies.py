"""What counts as a teacher's reasoning, and every way in which a reply is none."""

import pytest

from pipelines.data.teacher.prompts import UnusableReply, read_reasoning, teacher_prompt


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "think"),
    [
        ("Reasoning: A red ring moves.", False, "A red ring moves.", ""),
        ("Some words first.\n\n  Reasoning:A ring.  \n", False, "A ring.", ""),
        ("it moves\n</think>\n\nReasoning: A ring.", True, "A ring.", "it moves"),
        ("<think>\nReasoning: a draft\n</think>\nReasoning: A ring.", False, "A ring.", "Reasoning: a draft"),
    ],
)
def test_the_line_after_the_thinking_is_the_reasoning(text: str, thinking: bool, reasoning: str, think: str) -> None:
    assert read_reasoning(text, "stop", thinking) == (reasoning, think)


@pytest.mark.parametrize(
    ("text", "finish_reason", "thinking", "why"),
    [
        ("Reasoning: a draft of a thou", "length", True, "inside its thinking"),
        ("Reasoning: a draft", "stop", True, "inside its thinking"),
        ("<think> Reasoning: a draft", "stop", False, "inside its thinking"),
        ("Reasoning: A red ring mo", "length", False, "finish reason 'length'"),
        ("Reasoning: A ring.", "content_filter", False, "finish reason 'content_filter'"),
        ("A red ring moves.", "stop", False, "0 lines"),
        ("", "stop", False, "0 lines"),
        ("thought</think>", "stop", True, "0 lines"),
        ("Reasoning: one\nReasoning: two", "stop", False, "2 lines"),
        ("Reasoning:", "stop", False, "empty"),
        ("Reasoning:   \n", "stop", False, "empty"),
        ("Reasoning: one\nand more of it", "stop", False, "goes on"),
        ("Reasoning: it is <answer>matched</answer>", "stop", False, "tags"),
        ("Reasoning: over <|im_end|>", "stop", False, "tags"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, finish_reason: str, thinking: bool, why: str) -> None:
    with pytest.raises(UnusableReply, match=why):
        read_reasoning(text, finish_reason, thinking)


def test_the_right_video_comes_with_its_span_and_no_prompt_asks_for_a_label() -> None:
    right, wrong = teacher_prompt("a ring", (2.0, 7.25)), teacher_prompt("a ring", None)
    assert "2.0 s" in right[1]
    assert "7.25 s" in right[1]
    assert "ends at" not in wrong[1]
    for system, user in (right, wrong):
        assert 'Query: "a ring"' in user
        assert "does" in system
        assert "matched" not in system + user
