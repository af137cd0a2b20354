"""What the agent is told of a long video that a search has found: the tools of navigation, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence

from vsr1.formats.plain import plain
from vsr1.navigate.prompts import AFTER, film_words, tool_words
from vsr1.navigate.record import NavigateTask
from vsr1.search.prompts import REWRITE_PROMPT, user_text
from vsr1.settings.navigate import NavigateConfig


def system_prompt(settings: NavigateConfig, *, rewrites: bool) -> str:
    """Return what the navigation of each film begins with.

    Args:
        rewrites: a rejection says the query in new words.
    """
    return (
        f"You check one long retrieved video against a query. {tool_words(settings)} Or judge the video: if the "
        "queried moment is in a part that you have looked into, reply <answer>matched</answer> with <start> </start> "
        "and <end> </end> in seconds, otherwise <answer>not_matched</answer>. End a judgement with <REFINE>."
    ) + (REWRITE_PROMPT if rewrites else "")


def film_turn(task: NavigateTask, captions: Sequence[str | None], system: str) -> str:
    """Return the first prompt of a film in chat markup: query, captions of the first level, and what is left.

    Args:
        captions: of the roots of the film's tree, None where there is none.
    """
    shown = film_words(task, task.tree, captions)
    user = f"{user_text(plain(task.question))}{shown}"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}{AFTER}"
