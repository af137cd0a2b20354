"""Read a reply of the policy: any text gives a `Judgement`, never an exception.

One rule for every tag, in training and in evaluation alike: the last complete element decides. (The reference reads the
last one in RL and the first one in its evaluation, method.md §2.4 and §4.4.) An element is complete when it is opened
and closed with no tag of the same name in between.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vsr1.episode.moments import Span
from vsr1.search.record import Verdict

_MATCHED = {"matched", "match"}
_NOT_MATCHED = {"not_matched", "notmatch", "not-matched", "mismatch"}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


# Matches the text of a reply exactly where `read_verdict` says "matched", for programs that know no grammar.
ACCEPTS = r"(?s)<answer>\s*(?i:match(?:ed)?)\s*</answer>(?!.*<answer>(?:(?!</?answer>).)*</answer>)"


@dataclass(frozen=True)
class Judgement:
    """What one reply says of the video it was shown."""

    think: str | None  # stripped; None without a complete element
    verdict: Verdict
    span: Span | None  # seconds, 0 <= start < end <= duration
    rewrite: str | None = None  # the query in new words, stripped; None without any


def parse_reply(text: str, duration: float) -> Judgement:
    """Read reasoning, verdict, span and rewrite (grammar of method.md §2.3).

    The answer is lower-cased and its spaces become `_` before it is compared; anything unknown is `unknown`. A time is
    one decimal number and nothing else. The span is clamped to the video and is None if an end is missing, is no such
    number, is not finite, or if nothing is left between start and end.

    Args:
        duration: length of the shown video in seconds.

    Raises:
        ValueError: the duration is negative or not finite.
    """
    if not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"parse_reply: duration {duration} s must be finite and not negative; check the clip")
    think = last_element(text, "think")
    span = _span(last_element(text, "start"), last_element(text, "end"), duration)
    rewrite = (last_element(text, "query") or "").strip() or None
    return Judgement(None if think is None else think.strip(), read_verdict(text), span, rewrite)


def last_element(text: str, tag: str) -> str | None:
    """Content of the last complete `<tag>…</tag>`, None if there is none; a missing close or open tag is skipped."""
    content, opened = None, None
    for mark in re.finditer(rf"<(/?){re.escape(tag)}>", text):
        if not mark.group(1):
            opened = mark.end()
        elif opened is not None:
            content, opened = text[opened : mark.start()], None
    return content


def read_verdict(text: str) -> Verdict:
    """What the answer of a reply says; `unknown` without one, and for any other word."""
    word = (last_element(text, "answer") or "").strip().lower().replace(" ", "_")
    if word in _MATCHED:
        return "matched"
    return "not_matched" if word in _NOT_MATCHED else "unknown"


def _span(start: str | None, end: str | None, duration: float) -> Span | None:
    first, last = _seconds(start), _seconds(end)
    if first is None or last is None:
        return None
    first, last = (min(max(value, 0.0), duration) for value in (first, last))
    return (first, last) if first < last else None


def _seconds(content: str | None) -> float | None:
    if content is None or not _NUMBER.fullmatch(content.strip()):
        return None
    value = float(content)
    return value if math.isfinite(value) else None
