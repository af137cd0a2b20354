"""Which videos a query is compared with: by the retrieval reward and by the retrieval loss, in both stages."""

from __future__ import annotations

from collections.abc import Sequence


def negatives_of(right: str, shown: str, nearest: Sequence[str]) -> list[str]:
    """Return the wrong videos: those nearest to the query in words, then the one that was shown, each once.

    Args:
        right: the video that the query is about; it is left out.
        shown: the video that the reply is about.
        nearest: the first `sft.negatives` or `grpo.negatives` of the wrong videos that the dataset lists for the query.
    """
    return [video for video in dict.fromkeys([*nearest, shown]) if video != right]
