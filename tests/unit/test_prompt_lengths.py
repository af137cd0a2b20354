"""Records whose prompt is too long are left out, by the tokens that the prompt has with its clip."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.train.prompt_lengths import short_enough
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.processor import ClipProcessor
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.video.clips import Clip, ClipFolder, write_meta

POLICY = Path(__file__).parents[2] / "checkpoints" / "toy" / "sft"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rows = [
        {
            "video_id": name, "output_npy_path": f"/elsewhere/{name}.npy", "output_num_frames": frames,
            "output_height": 32, "output_width": 64, "sampled_timestamps_sec": [float(i) for i in range(frames)],
            "even_pad_applied": False, "target_sample_fps": 1.0,
        }
        for name, frames in (("short", 2), ("long", 8))
    ]  # fmt: skip
    DatasetFolder(tmp_path).clips("train").mkdir(parents=True)
    write_meta(DatasetFolder(tmp_path).clips("train"), rows)
    return Config.model_validate({"data": {"root": tmp_path}, "model": {"policy": POLICY}})


def tokens(query: str, frames: int) -> int:
    clip = Clip.make("x", np.zeros((frames, 32, 64, 3), np.uint8), np.arange(float(frames)))
    return len(ClipProcessor(POLICY).prompt_ids(turn_prompt(query, SYSTEM_PROMPT), clip))


def test_the_limit_is_on_the_whole_prompt_with_its_clip(config: Config) -> None:
    rows = [
        {"query": "a ring", "video_id": "short"}, {"query": "a ring", "video_id": "long"},
        {"query": "a ring " * 20, "video_id": "short"},
    ]  # fmt: skip

    def left(limit: int | None) -> list[dict]:
        return short_enough(rows, config, limit, lambda row: [row["video_id"]], "sft.max_prompt_tokens")

    small, long_clip = tokens("a ring", 2), tokens("a ring", 8)
    assert small < long_clip
    assert left(None) == rows and left(10_000) == rows
    assert left(small) == rows[:1]
    assert left(long_clip) == [
        row for row in rows if tokens(row["query"], 2 if row["video_id"] == "short" else 8) <= long_clip
    ]
    with pytest.raises(
        ValueError, match=rf"sft\.max_prompt_tokens=5 leaves no record: the shortest prompt has {small}"
    ):
        left(5)


def test_an_outline_has_the_size_and_times_of_its_clip(config: Config) -> None:
    outline = ClipFolder(DatasetFolder(config.data.root).clips("train")).outline("long")
    assert outline.frames.shape == (8, 32, 64, 3) and outline.timestamps.tolist() == list(range(8))
