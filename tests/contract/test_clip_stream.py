"""The stream of clips that Stage 1 reads."""

import threading
from pathlib import Path

import numpy as np
import pytest

from pipelines.train.clip_stream import clip_of, with_clips
from vsr1.video.clips import ClipFolder, write_meta

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]


def test_rows_keep_their_order_and_nothing_is_scheduled_in_the_process_that_reads(tmp_path: Path, clip_rows) -> None:
    write_meta(tmp_path, clip_rows(tmp_path))
    clips = ClipFolder(tmp_path, "true_seconds")
    rows = [{"video_id": f"v{i % 3}", "number": i} for i in range(24)]
    numbers, threads = [], set()
    for row in with_clips(rows, clips, 4).iter_rows():
        numbers.append(row["number"])
        np.testing.assert_array_equal(clip_of(row).frames, clips.read(row["video_id"]).frames)
        threads |= {thread.name for thread in threading.enumerate()}
    assert numbers == list(range(24))
    assert not [name for name in threads if "Executor" in name and "Streaming" in name]
