"""Videos to clips: every video of a split ends as a clip with a metadata row or as a named failure.

A clip whose source, sampling and file are those of its row in the journal is not made again, and a video that failed is
not tried again until its file or the sampling changes. Rows are added as they are finished, so that a build that is
killed goes on from there.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from pipelines.data import steps
from pipelines.data.manifest import Announce, Manifest, Video, check_failures, portable
from pipelines.data.workers import RayWorkers
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256
from vsr1.settings.data import DataConfig
from vsr1.video.clips import META, ClipMeta, clip_file, clip_storage, make_clip, read_meta, write_meta
from vsr1.video.decode import VideoError


class FileState(NamedTuple):
    """A file as a build saw it."""

    size: int  # bytes
    changed_ns: int  # time of the last change
    sha256: str

    @classmethod
    def of(cls, path: Path, earlier: FileState | None = None) -> FileState:
        """Return the state of a file; it is not read if size and time of change are those of an earlier one."""
        stat = path.stat()
        if earlier and earlier[:2] == (stat.st_size, stat.st_mtime_ns):
            return earlier
        return cls(stat.st_size, stat.st_mtime_ns, file_sha256(path))


class ClipRow(TypedDict):
    """What a clip was built from, or why there is none; the published metadata has no such fields."""

    video_id: str
    sampling: list[float]  # as `_sampling` gives it
    source: FileState | None  # None: there is none, as of a clip that came prepared, or it cannot be read
    clip: NotRequired[FileState]
    meta: NotRequired[ClipMeta]  # beside `clip`
    error: NotRequired[str]  # in place of both


class SplitClips:
    """Makes the clips of a split, and says what became of its videos.

    Attributes:
        manifest: the split with all its videos; `left` with those that gave a clip.
        clips: rows of videos that have a clip, `failures` of the others, both sorted by video id.
        decoded: videos that were decoded now.
        is_changed: the journal says something else than before.
    """

    def __init__(self, folder: DatasetFolder, manifest: Manifest, data: DataConfig) -> None:
        """
        Raises:
            ClipError: `meta.jsonl` of an earlier build is malformed.
        """
        self.clips: dict[str, ClipRow] = {}
        self.failures: dict[str, ClipRow] = {}
        self.decoded, self.is_changed = 0, False
        self.split, self.manifest, self.left = manifest.split, manifest, manifest
        self._folder, self._data = folder, data
        self._place, self._journal = folder.clips(manifest.split), folder.clips_journal(manifest.split)
        self._before = {name: _typed(row) for name, row in steps.read_journal(self._journal, "video_id").items()}
        self._prepared = read_meta(self._place) if (self._place / META).is_file() else {}

    def make(self, announce: Announce, workers: RayWorkers) -> None:
        """Write the clips, `meta.jsonl` and `failed_videos.jsonl`; a failure stops nothing.

        Clips in the journal that the split does not name any more are deleted; what came prepared is left.

        Raises:
            OSError: a task could not write its clip, as on a full disk.
            BuildError: too many videos failed.
        """
        data, videos = self._data, self.manifest.videos
        self._place.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(data.decode_workers) as readers:
            rows = {
                name: row for name, row in zip(videos, readers.map(self._known, videos.values()), strict=True) if row
            }
        jobs = [json.dumps([name, str(videos[name].path)]) for name in videos if name not in rows]
        announce(f"{self.split}: {len(jobs)} videos to decode, {len(rows)} clips kept")
        with steps.open_journal(self._journal) as add:
            work = partial(make_clip_row, root=self._folder.root, clips=self._place, data=data)
            for count, result in enumerate(map(json.loads, workers.each(jobs, work) if jobs else ()), start=1):
                if "stop" in result:
                    raise OSError(f"clip of {result['video_id']!r}: {result['stop']}")
                add(result)
                rows[result["video_id"]] = _typed(result)
                self.decoded += "clip" in result
                if count % 100 == 0:
                    announce(f"{self.split}: {count} of {len(jobs)} videos decoded")
        self._finish(rows)
        check_failures(
            {name: row["error"] for name, row in self.failures.items()}, len(videos), data.max_failed_fraction,
            f"videos of split {self.split!r} gave no clip", f"all of them in {self._folder.failed_videos(self.split)}; "
            "replace these files, or raise data.max_failed_fraction",
        )  # fmt: skip
        self.left = self.manifest.without(self.failures)

    def _known(self, video: Video) -> ClipRow | None:
        """Return what is known of a video without decoding it, None where it has to be decoded."""
        name, sampling, row = video.video_id, _sampling(self._data), self._before.get(video.video_id)
        source, earlier = (row["source"], row.get("clip")) if row else (None, None)
        meta = row.get("meta") if row else None
        if video.path:
            if not (row and source and row["sampling"] == sampling and video.path.is_file()):
                return None
            before, source = source, FileState.of(video.path, source)
            if source.sha256 != before.sha256:
                return None
            if "error" in row:
                return row | {"source": source}
        else:
            meta = self._prepared.get(name) or meta
        file = clip_file(self._place, name, meta) if meta and self._is_sampled(meta) else None
        if meta and file and file.is_file():
            clip = FileState.of(file, earlier)
            is_same = earlier is not None and earlier.sha256 == clip.sha256
            if is_same or not video.path:
                source = source if is_same else None  # a prepared clip is taken as it is
                return ClipRow(video_id=name, sampling=sampling, source=source, clip=clip, meta=meta)
        if video.path:
            return None
        error = f"no video file of this name in {self._data.videos or self._folder.raw_videos(self.split)}"
        return ClipRow(video_id=name, sampling=sampling, source=None, error=error)

    def _is_sampled(self, meta: ClipMeta) -> bool:
        """Say whether a clip is sampled and stored as now, as far as its metadata tell."""
        data = self._data
        stored = (meta.get("target_sample_fps"), meta.get("target_max_frames"), clip_storage(meta))
        is_small = meta.get("output_height", math.inf) * meta.get("output_width", math.inf) <= data.max_pixels
        return is_small and stored == (data.sample_fps, data.max_frames, data.clip_storage)

    def _finish(self, rows: dict[str, ClipRow]) -> None:
        """Write the files of the split, with the places where its sources are now, and delete clips that it lost."""
        folder, split, failures, now = self._folder, self.split, [], datetime.now(UTC).isoformat()
        for name, row in sorted(rows.items()):
            path = self.manifest.videos[name].path
            if "error" in row:
                place = portable(folder, path or folder.raw_videos(split) / name)
                failures.append(
                    {"video_id": name, "source_video_path": place, "error": row["error"], "extract_utc": now}
                )
                self.failures[name] = row
            else:
                place = portable(folder, path) if path else row["meta"]["source_video_path"]
                self.clips[name] = row | {"meta": row["meta"] | {"source_video_path": place}}
        write_meta(self._place, [row["meta"] for row in self.clips.values()])
        write_lines(folder.failed_videos(split), failures)
        for name in self._before.keys() - self.clips.keys():
            lost = self._before[name]
            if "clip" in lost and lost["source"]:
                clip_file(self._place, name, lost["meta"]).unlink(missing_ok=True)
        after: dict[str, ClipRow] = self.clips | self.failures
        self.is_changed = after != self._before
        write_lines(self._journal, (dict(row) for row in after.values()))


def make_clip_row(text: str, *, root: Path, clips: Path, data: DataConfig) -> str:
    """Make a video's clip and its row of the journal in a task.

    Args:
        text: JSON, the video's id and file.

    Returns:
        JSON: the row, or a `stop` where no clip can be written, as on a full disk.
    """
    name, path = json.loads(text)
    row: dict[str, Any] = {"video_id": name, "sampling": _sampling(data), "source": None}
    try:
        row["source"] = FileState.of(Path(path))
    except OSError as error:
        return json.dumps(row | {"error": f"cannot be read ({error.strerror})"})
    try:
        meta = make_clip(clips, name, Path(path), data)
        row["clip"] = FileState.of(clip_file(clips, name, meta))
    except VideoError as error:
        return json.dumps(row | {"error": error.reason}, ensure_ascii=False)
    except OSError as error:
        return json.dumps({"video_id": name, "stop": str(error)})
    places = {key: portable(DatasetFolder(root), Path(str(place))) for key, place in meta.items() if "_path" in key}
    return json.dumps(row | {"meta": meta | places}, ensure_ascii=False)


def _sampling(data: DataConfig) -> list[float]:
    return [data.sample_fps, data.max_frames, data.max_pixels]


def read_journal(path: Path) -> dict[str, ClipRow]:
    """Read what each clip of a split was built from, by video id."""
    return {name: _typed(row) for name, row in steps.read_journal(path, "video_id").items() if "clip" in row}


def _typed(row: dict[str, Any]) -> Any:
    """Return a row that was read from JSON with its file states as such."""
    return row | {key: FileState(*row[key]) for key in ("source", "clip") if row.get(key)}


def clip_key(row: ClipRow, timestamps: str) -> str:
    """Return one digest of what a model is given of a clip: frames, and the clock they are shown with."""
    meta = row["meta"]
    timing = [meta.get("sampled_timestamps_sec"), meta.get("even_pad_applied"), meta.get("target_sample_fps")]
    return value_sha256([row["clip"].sha256, timestamps, timing])
