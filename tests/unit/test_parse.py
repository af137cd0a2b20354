"""Reading replies: the last complete element of each tag decides, and no text raises."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.episode.moments import Span
from vsr1.search.parse import Judgement, last_element, parse_reply
from vsr1.search.record import Verdict

TAGS = ["think", "answer", "start", "end"]
PIECES = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
PIECES += ["matched", "not matched", "1.5", "nan", "inf", "1e999", "-2", " ", "\n", "<REFINE>", "<", "é", "٣"]


def test_a_whole_match() -> None:
    text = "<think> a red square </think> <answer>matched</answer> <start>2.0</start> <end>5.25</end> <REFINE>"
    assert parse_reply(text, 30.0) == Judgement("a red square", "matched", (2.0, 5.25))


def test_a_whole_rejection() -> None:
    text = "<think> no square </think> <answer>not_matched</answer> <REFINE>"
    assert parse_reply(text, 30.0) == Judgement("no square", "not_matched", None)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("matched", "matched"),
        ("match", "matched"),
        (" Matched ", "matched"),
        ("not_matched", "not_matched"),
        ("not matched", "not_matched"),
        ("NOT-MATCHED", "not_matched"),
        ("notmatch", "not_matched"),
        ("mismatch", "not_matched"),
        ("not_match", "unknown"),
        ("matched.", "unknown"),
        ("", "unknown"),
        ("matched or not_matched", "unknown"),
    ],
)
def test_answers(answer: str, verdict: Verdict) -> None:
    assert parse_reply(f"<answer>{answer}</answer>", 10.0).verdict == verdict


def test_no_answer_is_unknown() -> None:
    assert parse_reply("matched", 10.0).verdict == "unknown"


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        ("2", "5", (2.0, 5.0)),
        (" 2.50 ", "\n5\n", (2.5, 5.0)),
        ("-3", "5", (0.0, 5.0)),  # clamped below
        ("2", "99", (2.0, 10.0)),  # clamped above
        ("1e0", "2e0", (1.0, 2.0)),
        ("11", "12", None),  # nothing is left after clamping
        ("5", "2", None),  # reversed
        ("5", "5", None),  # empty
        ("", "5", None),
        ("two", "5", None),
        ("2 s", "5", None),
        ("0:02", "5", None),
        ("1_0", "20", None),
        ("nan", "5", None),
        ("2", "inf", None),
        ("2", "1e999", None),  # overflows to infinity
    ],
)
def test_spans(start: str, end: str, span: Span | None) -> None:
    reply = parse_reply(f"<start>{start}</start><end>{end}</end>", 10.0)
    assert reply.span == span


def test_a_missing_end_gives_no_span() -> None:
    reply = parse_reply("<start>2</start><end>5", 10.0)
    assert reply.span is None


def test_the_last_of_each_tag_decides() -> None:
    first = "<think>a</think><answer>matched</answer><start>1</start><end>2</end>"
    second = "<think>b</think><answer>not_matched</answer><start>3</start><end>4</end>"
    assert parse_reply(first + second, 10.0) == Judgement("b", "not_matched", (3.0, 4.0))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>a</answer>", "a"),
        ("<answer>a</answer> <answer>b", "a"),  # the second is not closed
        ("<answer>a</answer> b</answer>", "a"),  # a stray close
        ("<answer>a <answer>b</answer>", "b"),  # the first is not closed
        ("</answer>a<answer>", None),
        ("<ANSWER>a</ANSWER>", None),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer></answer>", ""),
    ],
)
def test_last_element(text: str, content: str | None) -> None:
    assert last_element(text, "answer") == content


@pytest.mark.parametrize("duration", [-1.0, math.nan, math.inf])
def test_a_bad_duration_is_the_callers_error(duration: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_reply("", duration)


@given(
    st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=30).map("".join)),
    st.floats(0, 1e6),
)
def test_no_text_raises(text: str, duration: float) -> None:
    reply = parse_reply(text, duration)
    assert reply.verdict in ("matched", "not_matched", "unknown")
    if reply.span is not None:
        assert 0 <= reply.span[0] < reply.span[1] <= duration
