"""Leaves out training records whose prompt is too long, its clip included, before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from vsr1.config import Config
from vsr1.environments.spec import Rows
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.search.prompts import agent_prompt, turn_prompt
from vsr1.video.clips import ClipFolder


def short_enough(
    rows: Rows, config: Config, limit: int | None, shown: Callable[[dict[str, Any]], list[str]], key: str
) -> Rows:
    """Return the rows of which no prompt has more than `limit` tokens; how many are left out is logged.

    Args:
        shown: gives the videos of a row, each of which makes a prompt with its `query`.
        key: of the limit, for messages.

    Raises:
        ValueError: none is short enough.
    """
    if limit is None:
        return rows
    from vsr1.model.processor import ClipProcessor  # slow to import, and most runs have no limit

    processor, system = ClipProcessor(config.model.policy), agent_prompt(config.agent)
    clips = ClipFolder(DatasetFolder(config.data.root).clips(TRAIN), config.data.timestamps)

    def longest(row: dict[str, Any]) -> int:
        prompt = turn_prompt(row["query"], system)
        return max(len(processor.prompt_ids(prompt, clips.outline(video))) for video in shown(row))

    lengths = [longest(row) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise ValueError(f"{key}={limit} leaves no record: the shortest prompt has {min(lengths)} tokens; raise it")
    logging.getLogger(__name__).warning("%s=%d leaves out %d of %d", key, limit, len(rows) - len(kept), len(rows))
    return kept
