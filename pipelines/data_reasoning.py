"""The reasoning step: pool pairs with a teacher's reasoning, as `sft_data/top1_reasoning_grounding.train.jsonl`.

The only teacher here is the rule-based one of the toy corpus, which reads what each video shows from an events file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.data_manifest import BuildError
from pipelines.data_records import reasoned_rows
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.teacher import load_events


def reasoning_inputs(folder: DatasetFolder, config: Config, split: str) -> tuple[list[Path], dict[str, Any]]:
    """Files and options, beside the pool, that the reasoning of a split depends on.

    Raises:
        BuildError: the split has no teacher.
    """
    if not folder.events(split).is_file():
        raise BuildError(
            f"{folder.events(split)} does not exist: a reasoning teacher for real corpora is not available yet, "
            "only the toy corpus has one; leave 'train' out of data.splits, or bring prepared sft_data/ and grpo_data/"
        )
    return [folder.events(split)], {"teacher": "toy rules"}


def write_reasoning(
    folder: DatasetFolder, config: Config, split: str, pool: list[dict[str, Any]], progress: Callable[[str], None]
) -> tuple[int, int]:
    """Write the reasoned pairs; how many there are, and how many pairs of the pool were left out.

    Raises:
        BuildError: the teacher lacks what it needs for a pair.
    """
    source = folder.events(split)
    events = {video_id: shown for video_id, (shown, _) in load_events(source).items()}
    rows, left_out = reasoned_rows(pool, events, source)
    write_lines(folder.reasoning(), rows)
    progress(f"{split}: {len(rows)} pairs with reasoning, {left_out} left out")
    return len(rows), left_out
