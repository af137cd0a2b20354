"""What the agent is told and how it answers: the grammar is the contract, the wording is ours.

`<think> … </think> <answer>matched</answer> <start>S</start> <end>E</end> <REFINE>` or
`<think> … </think> <answer>not_matched</answer> <REFINE>` (method.md §2.3).
"""

from __future__ import annotations

from pathlib import Path

from vsr1.formats.plain import plain
from vsr1.settings.parts import AgentConfig
from vsr1.storage import fetched

SYSTEM_PROMPT = (
    "You check one retrieved video against a query. Inside <think> </think>, go through what the video shows. "
    "If the queried moment is in it, reply <answer>matched</answer> with <start> </start> and <end> </end> in seconds. "
    "Otherwise reply <answer>not_matched</answer>. End every reply with <REFINE>. Say nothing outside the tags."
)

REWRITE_PROMPT = " On a mismatch, first say the query in better words for the search, inside <query> </query>."

VIDEO_PLACEHOLDER = "<|video_pad|>"


def system_prompt(path: Path | None) -> str:
    """Return the default prompt, or the text of a file (released checkpoints bring their own).

    Raises:
        FileNotFoundError: the file is missing.
    """
    return SYSTEM_PROMPT if path is None else fetched(path).read_text(encoding="utf-8").strip()


def agent_prompt(agent: AgentConfig) -> str:
    """Return the system prompt of an agent: its own, with what refinement in new words asks for."""
    return system_prompt(agent.system_prompt) + (REWRITE_PROMPT if agent.refinement == "text" else "")


def user_text(query: str) -> str:
    """Return the user's words before the video."""
    return f'Query: "{query}"\nRetrieved video: '


def turn_parts(query: str, system: str) -> tuple[str, str]:
    """Return what stands before and after the clip in the prompt of a turn, in chat markup for `encode_plain`."""
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user_text(plain(query))}"
    return before, "<|im_end|>\n<|im_start|>assistant\n"


def turn_prompt(query: str, system: str) -> str:
    """Return the whole prompt of a turn, with one placeholder where the clip goes."""
    return VIDEO_PLACEHOLDER.join(turn_parts(query, system))


def format_seconds(seconds: float) -> str:
    """Print `12` as `12.0`, others with up to six decimals and no trailing zeros (method.md §2.3)."""
    if float(seconds).is_integer():
        return f"{seconds:.1f}"
    return f"{seconds:.6f}".rstrip("0")


def with_rewrite(reply: str, rewrite: str) -> str:
    """Return a reply that rejects its video, with the query in new words before the refine token.

    Raises:
        ValueError: the reply does not end in that token.
    """
    words, token, after = reply.rpartition("<REFINE>")
    if not token or after.strip():
        raise ValueError(f"a reply that is to refine the query must end in <REFINE>, this one ends in {reply[-40:]!r}")
    return f"{words}<query>{rewrite}</query> {token}"


def assistant_text(think: str, matched: bool, span: tuple[float, float] | None) -> str:
    """Return the reply that training teaches.

    Raises:
        ValueError: empty reasoning, or a match without a span.
    """
    if not think.strip():
        raise ValueError("a training reply needs reasoning; drop the record instead of inventing one")
    if not matched:
        return f"<think> {think} </think> <answer>not_matched</answer> <REFINE>"
    if span is None:
        raise ValueError("a matched reply needs a span")
    start, end = (format_seconds(value) for value in span)
    return f"<think> {think} </think> <answer>matched</answer> <start>{start}</start> <end>{end}</end> <REFINE>"
