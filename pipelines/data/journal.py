"""The journal of a split's clips: from which content of which source, and with which sampling, each clip was made.

One row a finished clip, in `<root>/.vsr1/build/<split>.clips.rows.jsonl`: `meta` is its row of `meta.jsonl`, `sampling`
the options, `source` and `clip` are [bytes, nanoseconds of the last change, sha256]; a clip that came prepared has no
source. It is a file of its own because the published metadata has no such fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vsr1.formats.digest import value_sha256

Row = dict[str, Any]


def read_journal(path: Path) -> dict[str, Row]:
    """Rows by video id, the last of each; a line that was cut off by a kill is passed over."""
    if not path.is_file():
        return {}
    whole = path.read_bytes().split(b"\n")[:-1]
    return {row["video_id"]: row for row in map(json.loads, whole)}


def clip_key(row: Row, timestamps: str) -> str:
    """What a model is given of a clip, frames and the clock they are shown with, as one digest."""
    timing = [row["meta"].get(key) for key in ("sampled_timestamps_sec", "even_pad_applied", "target_sample_fps")]
    return value_sha256([row["clip"][2], timestamps, timing])
