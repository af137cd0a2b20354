"""What goes to a teacher model and what comes back, the same for every kind of model."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from pipelines.data.teacher.prompts import UnusableReply, read_reasoning


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


def judged(pair_id: str, text: str, finish_reason: str, thinking: bool = False) -> Answer:
    """A reply as an answer, usable or not; arguments as those of `read_reasoning`."""
    try:
        (reasoning, think), error = read_reasoning(text, finish_reason, thinking), ""
    except UnusableReply as unusable:
        reasoning, think, error = "", "", str(unusable)
    return Answer(pair_id=pair_id, reasoning=reasoning, think=think, finish_reason=finish_reason, raw=text, error=error)
