"""Videos to clips with Ray Data: every video of a split ends as a clip with a metadata row or as a named failure.

A clip whose source, sampling and file are those of its row in the journal is not made again; rows are appended as the
tasks finish, so that a build that is killed goes on from there. A task holds one video's frames; only rows of text come
back to the driver.
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

from pipelines.data.manifest import BuildError, Manifest, Video, portable, video_path
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256
from vsr1.settings.data import DataConfig
from vsr1.video.clips import META, clip_file, clip_storage, make_clip, read_meta, write_meta
from vsr1.video.decode import VideoError

Row = dict[str, Any]  # of the journal of a split's clips; its fields are in `read_journal`

VIDEOS_A_TASK = 8  # at most


@dataclass
class ClipOutcome:
    """What became of the videos of a split; `failed` maps a video id to the reason."""

    decoded: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def clips_options(folder: DatasetFolder, manifest: Manifest, data: DataConfig) -> dict[str, Any]:
    """What the clips of a split depend on: the sampling, and size and time of change of every source."""
    sources = [[v.video_id, v.path and [portable(folder, v.path), *_stat(v.path)]] for v in manifest.videos.values()]
    return {
        "sampling": [*_sampling(data), data.clip_storage],
        "sources": sources,
        "max_failed_fraction": data.max_failed_fraction,
    }


def build_clips(
    folder: DatasetFolder, manifest: Manifest, data: DataConfig, journal: Path, progress: Callable[[str], None]
) -> ClipOutcome:
    """Write the clips of a split, `meta.jsonl` and `failed_videos.jsonl`; a failure stops nothing.

    Clips in the journal that the split does not name any more are deleted; what came prepared is left.

    Raises:
        ClipError: `meta.jsonl` of an earlier build is malformed.
        OSError: a task could not write its clip, as on a full disk.
        BuildError: too many videos failed.
    """
    clips, split = folder.clips(manifest.split), manifest.split
    clips.mkdir(parents=True, exist_ok=True)
    prepared = read_meta(clips) if (clips / META).is_file() else {}
    rows = read_journal(journal)
    write_lines(journal, rows.values())  # without a last line that was cut off
    kept: dict[str, Row] = {}
    outcome, pending = ClipOutcome(), []
    for name, video in manifest.videos.items():
        row = _earlier(clips, video, rows.get(name), prepared.get(name), data)
        if row and _untouched(clips, video, row):
            kept[name] = row
        elif video.path is None and not (row and clip_file(clips, name, row["meta"]).is_file()):
            outcome.failed[name] = f"no video file of this name in {data.videos or folder.raw_videos(split)}"
        else:
            pending.append({"video_id": name, "path": str(video.path or ""), "earlier": json.dumps(row)})
    outcome.reused = len(kept)
    progress(f"{split}: {len(pending)} videos to decode, {len(kept)} clips kept")
    with journal.open("a", encoding="utf-8") as log:
        for done in _made(folder, split, pending, data):
            if done["stop"]:
                raise OSError(f"clip of {done['video_id']!r}: {done['stop']}")
            if done["error"]:
                outcome.failed[done["video_id"]] = done["error"]
                continue
            log.write(done["row"] + "\n")
            log.flush()
            kept[done["video_id"]] = json.loads(done["row"])
            outcome.decoded += done["decoded"]
            outcome.reused += not done["decoded"]
            if outcome.decoded % 100 == 99:
                progress(f"{split}: {len(kept)} of {len(manifest.videos)} clips")
    kept = {name: _at_its_source(folder, split, manifest.videos[name], kept[name]) for name in sorted(kept)}
    write_meta(clips, [row["meta"] for row in kept.values()])
    write_lines(failures_file(folder, split), _failure_rows(folder, manifest, outcome))
    for name in rows.keys() - kept.keys():
        if rows[name]["source"]:
            clip_file(clips, name, rows[name]["meta"]).unlink(missing_ok=True)
    write_lines(journal, kept.values())
    _check_failures(folder, manifest, outcome, data.max_failed_fraction)
    return outcome


def failures_file(folder: DatasetFolder, split: str) -> Path:
    """`failed_videos.jsonl`: one row a video that gave no clip, empty if there is none."""
    return folder.clips(split) / "failed_videos.jsonl"


def _made(folder: DatasetFolder, split: str, pending: list[dict[str, str]], data: DataConfig) -> Iterator[Row]:
    """Rows of `_make_clip`, in the order in which the tasks finish."""
    if not pending:
        return
    blocks = max(math.ceil(len(pending) / VIDEOS_A_TASK), min(len(pending), data.decode_workers))
    dataset = ray.data.from_items(pending, override_num_blocks=blocks).map(
        _make_clip,
        fn_kwargs={"root": folder.root, "clips": folder.clips(split), "data": data},
        compute=ray.data.TaskPoolStrategy(size=min(blocks, data.decode_workers)),
        num_cpus=1,
    )
    yield from dataset.iter_rows()


def _make_clip(item: dict[str, str], *, root: Path, clips: Path, data: DataConfig) -> Row:
    """One video in a task: its journal row as JSON, or why it has none; `stop` where no video can be written."""
    name, source, earlier = item["video_id"], Path(item["path"]), json.loads(item["earlier"])
    result = {"video_id": name, "row": "", "error": "", "stop": "", "decoded": False}
    try:
        before = _state(source) if item["path"] else None
    except OSError as error:
        return result | {"error": f"cannot be read ({error.strerror})"}
    row: Row = {"video_id": name, "sampling": _sampling(data), "source": before}
    if earlier and clip_file(clips, name, earlier["meta"]).is_file():
        now = _state(clip_file(clips, name, earlier["meta"]))
        if before is None or (_content(before) == _content(earlier["source"]) and now[2] == _content(earlier["clip"])):
            source_of = before or earlier["source"]
            row |= {"source": source_of, "clip": now, "meta": earlier["meta"]}
            return result | {"row": json.dumps(row, ensure_ascii=False)}
    try:
        meta = make_clip(clips, name, source, data)
    except VideoError as error:
        return result | {"error": error.reason}
    except OSError as error:
        return result | {"stop": str(error)}
    folder = DatasetFolder(root)
    for key in ("source_video_path", f"output_{data.clip_storage}_path"):
        meta[key] = portable(folder, Path(meta[key]))
    row |= {"clip": _state(clip_file(clips, name, meta)), "meta": meta}
    return result | {"row": json.dumps(row, ensure_ascii=False), "decoded": True}


def _earlier(clips: Path, video: Video, row: Row | None, prepared: Row | None, data: DataConfig) -> Row | None:
    """The row of a clip that may be kept: sampled as now, made by a build or prepared elsewhere without a source."""
    if video.path is None and prepared and not (row and _untouched(clips, video, row)):
        row = {"video_id": video.video_id, "sampling": None, "source": None, "clip": None, "meta": prepared}
    if row is None:
        return None
    meta = row["meta"]
    same_sampling = (meta.get("target_sample_fps"), meta.get("target_max_frames")) == (data.sample_fps, data.max_frames)
    small_enough = meta.get("output_height", math.inf) * meta.get("output_width", math.inf) <= data.max_pixels
    if row["source"] and row["sampling"] != _sampling(data):
        return None
    same_storage = clip_storage(meta) == data.clip_storage
    return row if same_sampling and same_storage and small_enough else None


def _untouched(clips: Path, video: Video, row: Row) -> bool:
    clip = clip_file(clips, video.video_id, row["meta"])
    if not clip.is_file() or not row["clip"] or _stat(clip) != row["clip"][:2]:
        return False
    return video.path is None or bool(row["source"] and _stat(video.path) == row["source"][:2])


def _at_its_source(folder: DatasetFolder, split: str, video: Video, row: Row) -> Row:
    """The row with the place where the source is now."""
    if video.path is None:
        return row
    return row | {"meta": row["meta"] | {"source_video_path": video_path(folder, split, video)}}


def _sampling(data: DataConfig) -> list[float]:
    return [data.sample_fps, data.max_frames, data.max_pixels]


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _state(path: Path) -> list[Any]:
    """Size, time of change and content of a file."""
    return [*_stat(path), file_sha256(path)]


def _content(state: list[Any] | None) -> str | None:
    return state[2] if state else None


def _check_failures(folder: DatasetFolder, manifest: Manifest, outcome: ClipOutcome, tolerated: float) -> None:
    failed, total = outcome.failed, len(manifest.videos)
    if len(failed) <= tolerated * total:
        return
    named = "; ".join(f"{video_id}: {failed[video_id]}" for video_id in sorted(failed)[:3])
    raise BuildError(
        f"split {manifest.split!r}: {len(failed)} of {total} videos gave no clip ({named}), all of them in "
        f"{failures_file(folder, manifest.split)}; replace these files, or raise data.max_failed_fraction={tolerated}"
    )


def _failure_rows(folder: DatasetFolder, manifest: Manifest, outcome: ClipOutcome) -> Iterator[dict[str, str]]:
    now = datetime.now(UTC).isoformat()
    for video_id in sorted(outcome.failed):
        path = manifest.videos[video_id].path or folder.raw_videos(manifest.split) / video_id
        yield {
            "video_id": video_id,
            "source_video_path": portable(folder, path),
            "error": outcome.failed[video_id],
            "extract_utc": now,
        }


def read_journal(path: Path) -> dict[str, Row]:
    """Read the journal of a split's clips: rows by video id, the last of each.

    One row a finished clip, in `<root>/.vsr1/build/<split>.clips.rows.jsonl`: `meta` is its row of `meta.jsonl`,
    `sampling` the options, `source` and `clip` are [bytes, nanoseconds of the last change, sha256]; a clip that came
    prepared has no source. The published metadata has no such fields. A line that was cut off by a kill is passed over.
    """
    if not path.is_file():
        return {}
    whole = path.read_bytes().split(b"\n")[:-1]
    return {row["video_id"]: row for row in map(json.loads, whole)}


def clip_key(row: Row, timestamps: str) -> str:
    """What a model is given of a clip, frames and the clock they are shown with, as one digest."""
    timing = [row["meta"].get(key) for key in ("sampled_timestamps_sec", "even_pad_applied", "target_sample_fps")]
    return value_sha256([row["clip"][2], timestamps, timing])
