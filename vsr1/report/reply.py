"""A reply cut at its tags, so that the page can colour them. The pieces put together are the reply, unchanged."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"(</?(?:think|answer|start|end)>|<REFINE>)")


@dataclass(frozen=True)
class Piece:
    """Text of a reply, not escaped; `style` is the CSS class: "tag-think" for a tag, "in-think" inside it, or ""."""

    text: str
    style: str


def pieces(text: str) -> list[Piece]:
    """Cut `text` at the tags of the reply grammar (method.md §2.3). Tags may be missing, doubled or out of order."""
    result: list[Piece] = []
    inside = ""
    for part in _TAG.split(text):
        if not part:
            continue
        if _TAG.fullmatch(part):
            name = part.strip("</>").lower()
            result.append(Piece(part, f"tag-{name}"))
            inside = name if part[1] != "/" and name != "refine" else ""
        else:
            result.append(Piece(part, f"in-{inside}" if inside else ""))
    return result
