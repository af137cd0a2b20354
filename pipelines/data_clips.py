"""Videos to clips with Ray Data: every video of a split ends as a clip with a metadata row or as a named failure.

A clip that is there with its row, sampled with the same settings, is not decoded again. Rows are appended as the tasks
finish, so that a build that is killed goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray.data

from pipelines.data_manifest import Manifest, Video
from vsr1.config import DataConfig
from vsr1.formats.atomic import write_lines
from vsr1.formats.clips import META, clip_file, clip_storage, read_meta, write_clip, write_meta
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.decode import VideoError, sample_video

VIDEOS_A_TASK = 8  # at most


@dataclass
class ClipOutcome:
    """What became of the videos of a split; `failed` maps a video id to the reason."""

    decoded: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def build_clips(
    folder: DatasetFolder, manifest: Manifest, data: DataConfig, progress: Callable[[str], None]
) -> ClipOutcome:
    """Write the clips of a split, `meta.jsonl` and `failed_videos.jsonl`; a failure stops nothing.

    Raises:
        ClipError: `meta.jsonl` of an earlier build is malformed.
    """
    clips, split = folder.clips(manifest.split), manifest.split
    clips.mkdir(parents=True, exist_ok=True)
    earlier = _earlier_rows(clips)
    others = [row for name, row in earlier.items() if name not in manifest.videos]
    kept = {name: row for name, row in earlier.items() if name in manifest.videos and _usable(clips, name, row, data)}
    outcome = ClipOutcome(reused=len(kept))
    pending = []
    for video in manifest.videos.values():
        if video.video_id in kept:
            continue
        if video.path is None:
            outcome.failed[video.video_id] = f"no video file of this name in {folder.raw_videos(split).name}/"
        else:
            pending.append(video)
    progress(f"{split}: {len(pending)} videos to decode, {len(kept)} clips kept")
    with (clips / META).open("a", encoding="utf-8") as log:
        for done in _decoded(folder, split, pending, data):
            if done["error"]:
                outcome.failed[done["video_id"]] = done["error"]
                continue
            kept[done["video_id"]] = json.loads(done["meta"])
            log.write(done["meta"] + "\n")
            log.flush()
            outcome.decoded += 1
            if outcome.decoded % 100 == 0:
                progress(f"{split}: {outcome.decoded} of {len(pending)} videos decoded")
    write_meta(clips, [*others, *kept.values()])
    write_lines(failures_file(folder, split), _failure_rows(folder, manifest, outcome))
    return outcome


def failures_file(folder: DatasetFolder, split: str) -> Path:
    """`failed_videos.jsonl`: one row a video that gave no clip, empty if there is none."""
    return folder.clips(split) / "failed_videos.jsonl"


def _decoded(folder: DatasetFolder, split: str, videos: list[Video], data: DataConfig) -> Iterator[dict[str, str]]:
    """Rows of `_decode`, in the order in which the tasks finish."""
    if not videos:
        return
    manifest = [{"video_id": video.video_id, "path": str(video.path)} for video in videos]
    blocks = max(math.ceil(len(manifest) / VIDEOS_A_TASK), min(len(manifest), data.decode_workers))
    dataset = ray.data.from_items(manifest, override_num_blocks=blocks).map(
        _decode,
        fn_kwargs={"root": folder.root, "clips": folder.clips(split), "data": data},
        compute=ray.data.TaskPoolStrategy(size=min(blocks, data.decode_workers)),
        num_cpus=1,
    )
    yield from dataset.iter_rows()


def _decode(row: dict[str, str], *, root: Path, clips: Path, data: DataConfig) -> dict[str, str]:
    """One video in a task: its metadata row as JSON, or why it has none."""
    source = Path(row["path"])
    try:
        sampled = sample_video(source, fps=data.sample_fps, max_frames=data.max_frames, max_pixels=data.max_pixels)
    except VideoError as error:
        return {"video_id": row["video_id"], "meta": "", "error": error.reason}
    meta = write_clip(
        clips,
        row["video_id"],
        sampled,
        source=source,
        target_fps=data.sample_fps,
        max_frames=data.max_frames,
        storage=data.clip_storage,
    )
    for name in ("source_video_path", f"output_{data.clip_storage}_path"):
        meta[name] = Path(meta[name]).relative_to(root).as_posix()
    return {"video_id": row["video_id"], "meta": json.dumps(meta, ensure_ascii=False), "error": ""}


def _earlier_rows(clips: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier build by video id; a last line that was cut off when it was killed is removed."""
    path = clips / META
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return read_meta(clips)


def _usable(clips: Path, video_id: str, row: dict[str, Any], data: DataConfig) -> bool:
    same_sampling = (row.get("target_sample_fps"), row.get("target_max_frames")) == (data.sample_fps, data.max_frames)
    small_enough = row.get("output_height", math.inf) * row.get("output_width", math.inf) <= data.max_pixels
    same_storage = clip_storage(row) == data.clip_storage
    return same_sampling and same_storage and small_enough and clip_file(clips, video_id, row).is_file()


def _failure_rows(folder: DatasetFolder, manifest: Manifest, outcome: ClipOutcome) -> Iterator[dict[str, str]]:
    now = datetime.now(UTC).isoformat()
    for video_id in sorted(outcome.failed):
        path = manifest.videos[video_id].path or folder.raw_videos(manifest.split) / video_id
        source = path.relative_to(folder.root).as_posix()
        yield {
            "video_id": video_id,
            "source_video_path": source,
            "error": outcome.failed[video_id],
            "extract_utc": now,
        }
