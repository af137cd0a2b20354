"""What a teacher model is told about a pair of query and video, and how its reasoning is read from the reply.

This is the same for every kind of model. The teacher is never asked whether the pair matches: it is told, and writes
why. A reply that is not a whole answer in the form asked for is refused; nothing is put in its place.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypedDict

from vsr1.search.prompts import format_seconds

MATCH_PROMPT = (
    "You annotate a video search data set. The video you are shown does contain the moment that the query describes, "
    "and you get the seconds where that moment begins and ends. Write one to three sentences of plain fact: what is "
    "seen when the moment begins, so that it could not begin earlier or later, and what is seen when it ends. Describe "
    "the picture only; do not say that the seconds were given to you. Close your reply with one single line that "
    "starts with `Reasoning:` and goes on with these sentences."
)
WRONG_PROMPT = (
    "You annotate a video search data set. The video you are shown does not contain the moment that the query "
    "describes. Write one or two sentences of plain fact: what the query requires, and what the video has in its place "
    "or lacks. Describe the picture only. Close your reply with one single line that starts with `Reasoning:` and goes "
    "on with these sentences."
)

_LINE = re.compile(r"^[ \t]*Reasoning:(.*)$", re.MULTILINE)
_MARKUP = re.compile(r"</?(?:think|answer|start|end|refine)>|<\|", re.IGNORECASE)  # of the policy's replies


class Task(NamedTuple):
    """One pair to reason about: the video, the words around it, and a fingerprint of all that shapes the answer."""

    pair_id: str
    video_id: str
    system: str
    user: str
    fingerprint: str


class Answer(TypedDict):
    """`error` is empty for a usable answer; otherwise it is the reason, and reasoning and thinking are empty."""

    pair_id: str
    reasoning: str
    think: str
    finish_reason: str
    raw: str
    error: str


class UnusableReply(ValueError):  # noqa: N818  # says what it is
    """A teacher's reply that gives no reasoning; the message is the reason, without the reply."""


def teacher_prompt(query: str, span: tuple[float, float] | None) -> tuple[str, str]:
    """Return the system's words and the user's before the video.

    Args:
        span: start and end of the moment in seconds for the right video, None for a wrong one.
    """
    if span is None:
        return WRONG_PROMPT, f'Query: "{query}"\nVideo:\n'
    start, end = (format_seconds(value) for value in span)
    return MATCH_PROMPT, f'Query: "{query}"\nThe moment begins at {start} s and ends at {end} s.\nVideo:\n'


def judged(pair_id: str, text: str, finish_reason: str, thinking: bool = False) -> Answer:
    """Return a reply as an answer, usable or not; arguments as those of `read_reasoning`."""
    try:
        (reasoning, think), error = read_reasoning(text, finish_reason, thinking), ""
    except UnusableReply as unusable:
        reasoning, think, error = "", "", str(unusable)
    return Answer(pair_id=pair_id, reasoning=reasoning, think=think, finish_reason=finish_reason, raw=text, error=error)


def read_reasoning(text: str, finish_reason: str, thinking: bool = False) -> tuple[str, str]:
    """Read reasoning and thinking of a reply; the thinking is empty where the model shows none.

    Args:
        finish_reason: why the model stopped.
        thinking: the text begins inside `<think>`, because the chat template opens it.

    Raises:
        UnusableReply: the reply was cut off, has no whole answer line, or its reasoning holds tags of the policy.
    """
    thought, closed, answer = text.rpartition("</think>")
    if not closed and (thinking or "<think>" in text):
        raise UnusableReply("the reply ends inside its thinking")
    if finish_reason != "stop":
        raise UnusableReply(f"the reply did not come to its end (finish reason {finish_reason!r})")
    lines = _LINE.findall(answer)
    if len(lines) != 1:
        raise UnusableReply(f"the reply has {len(lines)} lines that start with 'Reasoning:', want one")
    reasoning = str(lines[0]).strip()
    if not reasoning:
        raise UnusableReply("the reasoning is empty")
    if answer[answer.index("Reasoning:") :].strip().count("\n"):
        raise UnusableReply("the reply goes on after its reasoning line")
    if _MARKUP.search(reasoning):
        raise UnusableReply("the reasoning holds tags of the policy's own replies")
    return reasoning, thought.strip().removeprefix("<think>").strip()
