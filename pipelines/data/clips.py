"""Videos to clips: every video of a split ends as a clip with a metadata row or as a named failure.

A clip whose source, sampling and file are those of its row in the journal is not made again, and a video that failed is
not tried again until its file, the sampling or `data.other_length` changes. Rows are added as they are finished, so
that a build that is killed goes on from there. What decoded is compared with what is annotated each time.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from pipelines.data import steps
from pipelines.data.decoding import Decoding, reporting
from pipelines.data.manifest import Announce, Manifest, Video, check_failures, portable
from pipelines.data.workers import RayWorkers
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256
from vsr1.settings.data import DataConfig
from vsr1.video.clips import META, ClipMeta, clip_file, clip_storage, make_clip, read_meta, write_meta
from vsr1.video.container import VideoError
from vsr1.video.decode import differs
from vsr1.video.faults import work_on


class Failure(NamedTuple):
    """Why a video is not used, and in which step that showed."""

    step: str
    error: str


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
    sampling: list[Any]  # as `_sampling` gives it
    source: FileState | None  # None: there is none, as of a clip that came prepared, or it cannot be read
    clip: NotRequired[FileState]
    meta: NotRequired[ClipMeta]  # beside `clip`
    error: NotRequired[str]  # in place of both
    step: NotRequired[str]  # in which the error showed
    other_length: NotRequired[str]  # `data.other_length` as it was then
    refused: NotRequired[list[str]]  # step and reason, of a clip that is not used for now


class SplitClips:
    """Makes the clips of a split, and says what became of its videos.

    Attributes:
        manifest: the split with all its videos; `left` with those that gave a clip.
        clips: rows of videos that have a clip, `failures` of the others, both sorted by video id.
        decoded: how many of the clips were made now.
        is_changed: the journal says something else than before.
    """

    def __init__(self, folder: DatasetFolder, manifest: Manifest, data: DataConfig) -> None:
        """
        Raises:
            ClipError: `meta.jsonl` of an earlier build is malformed.
        """
        self.clips: dict[str, ClipRow] = {}
        self.failures: dict[str, Failure] = {}
        self.decoded, self.is_changed = 0, False
        self.split, self.manifest, self.left = manifest.split, manifest, manifest
        self._folder, self._data = folder, data
        self._place, self._journal = folder.clips(manifest.split), folder.clips_journal(manifest.split)
        self._before = {name: _typed(row) for name, row in steps.read_journal(self._journal, "video_id").items()}
        self._prepared = read_meta(self._place) if (self._place / META).is_file() else {}
        self._rows: dict[str, ClipRow] = {}
        self._new: set[str] = set()

    def plan(self) -> None:
        """Find what need not be decoded, and which videos have no file.

        Raises:
            BuildError: too many have none.
        """
        videos = self.manifest.videos
        with ThreadPoolExecutor(self._data.decode_workers) as readers:
            known = zip(videos, readers.map(self._known, videos.values()), strict=True)
            self._rows = {name: row for name, row in known if row}
        missing = {name: row["error"] for name, row in self._rows.items() if row.get("step") == "find"}
        if missing:
            self._write_failures({name: Failure("find", error) for name, error in missing.items()})
        self._check(missing, "have no file, nothing is decoded yet")

    def make(self, announce: Announce, workers: RayWorkers) -> None:
        """Write the clips, `meta.jsonl`, `failed_videos.jsonl` and `lost_moments.jsonl`; a failure stops nothing.

        Clips in the journal that the split does not name any more are deleted; what came prepared is left.

        Raises:
            OSError: a task could not write its clip, as on a full disk.
            BuildError: too many videos failed.
        """
        videos, rows = self.manifest.videos, self._rows
        self._place.mkdir(parents=True, exist_ok=True)
        jobs = [json.dumps([name, str(videos[name].path)]) for name in videos if name not in rows]
        announce(f"{self.split}: {len(jobs)} videos to decode, {len(rows)} clips kept")
        place = self._folder.build_state / f"{self.split}.decoding"
        with steps.open_journal(self._journal) as add, Decoding(self.split, len(jobs), place, announce) as decoding:
            work = partial(make_clip_row, root=self._folder.root, clips=self._place, data=self._data, progress=place)
            for result in map(json.loads, workers.each(jobs, work) if jobs else ()):
                if "stop" in result:
                    raise OSError(f"clip of {result['video_id']!r}: {result['stop']}")
                add(result)
                rows[result["video_id"]] = _typed(result)
                self._new.add(result["video_id"])
                decoding.finished()
        self.refuse({})

    def refuse(self, refused: dict[str, Failure]) -> None:
        """Take clips out that cannot be embedded, and write what is left.

        Raises:
            BuildError: too many videos failed.
        """
        self._finish(refused)
        self._check({name: failure.error for name, failure in self.failures.items()}, "gave no clip")
        lost = self._lost_moments()
        write_lines(self._folder.lost_moments(self.split), lost)
        self.left = self._with_true_lengths(self.manifest.without(self.failures, {row["qid"] for row in lost}))

    def _check(self, failed: dict[str, str], what: str) -> None:
        check_failures(
            failed, len(self.manifest.videos), self._data.max_failed_fraction,
            f"videos of split {self.split!r} {what}", f"all of them in {self._folder.failed_videos(self.split)}; "
            "replace these files, or raise data.max_failed_fraction",
        )  # fmt: skip

    def _known(self, video: Video) -> ClipRow | None:
        """Return what is known of a video without decoding it, None where it has to be decoded."""
        name, sampling, row = video.video_id, _sampling(self._data), self._before.get(video.video_id)
        source, earlier = (row["source"], row.get("clip")) if row else (None, None)
        meta = row.get("meta") if row else None
        if video.path:
            if not (row and source and row["sampling"] == sampling and video.path.is_file()):
                return None
            try:
                before, source = source, FileState.of(video.path, source)
            except OSError:
                return None  # whoever decodes it names it
            if source.sha256 != before.sha256:
                return None
            if "error" in row:
                return row | {"source": source} if row.get("other_length") == self._data.other_length else None
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
        error = f"no video file of this name in {self.manifest.place}"
        return ClipRow(video_id=name, sampling=sampling, source=None, error=error, step="find")

    def _is_sampled(self, meta: ClipMeta) -> bool:
        """Say whether a clip is sampled and stored as now, as far as its metadata tell."""
        data = self._data
        stored = (meta.get("target_sample_fps"), meta.get("target_max_frames"), clip_storage(meta))
        is_small = meta.get("output_height", math.inf) * meta.get("output_width", math.inf) <= data.max_pixels
        return is_small and stored == (data.sample_fps, data.max_frames, data.clip_storage)

    def _finish(self, refused: dict[str, Failure]) -> None:
        """Write the files of the split, with the places where its sources are now, and delete clips that it lost."""
        self.clips, self.failures = {}, {}
        after: dict[str, ClipRow] = {}
        for name, row in sorted(self._rows.items()):
            path = self.manifest.videos[name].path
            after[name] = row
            if failure := refused.get(name) or self._failure(row):
                self.failures[name] = failure
                after[name] = row | {"refused": [*failure]} if "clip" in row else row
            else:
                place = portable(self._folder, path) if path else row["meta"]["source_video_path"]
                self.clips[name] = after[name] = row | {"meta": row["meta"] | {"source_video_path": place}}
        write_meta(self._place, [row["meta"] for row in self.clips.values()])
        self._write_failures(self.failures)
        for name in self._before.keys() - self._rows.keys():
            self._delete(self._before[name])
        for name in self.failures.keys() & self._before.keys():
            if "clip" not in self._rows[name]:
                self._delete(self._before[name])
        self.decoded = len(self._new & self.clips.keys())
        self.is_changed = _made(after) != _made(self._before)
        write_lines(self._journal, (dict(row) for row in after.values()))

    def _failure(self, row: ClipRow) -> Failure | None:
        """Return why a video is not used: it has no clip, or not the length that is said of it."""
        if "error" in row:
            return Failure(row.get("step", "decode"), row["error"])
        if self._data.other_length == "keep" or row["source"] is None:
            return None
        if fault := row["meta"].get("source_fault"):
            return Failure("compare", fault)
        annotated = self.manifest.videos[row["video_id"]].duration
        seconds = row["meta"]["source_duration_sec"]
        if not annotated or not differs(annotated, seconds):
            return None
        return Failure(
            "compare",
            f"annotated as {annotated:.1f} s, the file has {seconds:.1f} s; fetch it again, correct the annotations, "
            "or set data.other_length=keep",
        )

    def _other_length(self, video_id: str) -> float | None:
        """Return the seconds of a video that is kept though it is not as long as annotated."""
        row, annotated = self.clips.get(video_id), self.manifest.videos[video_id].duration
        if row is None or row["source"] is None or not annotated:
            return None
        seconds = row["meta"]["source_duration_sec"]
        return seconds if differs(annotated, seconds) else None

    def _lost_moments(self) -> list[dict[str, Any]]:
        """Return a row for each moment that ends after its video, where that is shorter than annotated."""
        moments = [(row, self._other_length(row.video)) for row in self.manifest.annotations]
        return [
            {"qid": row.qid, "video_id": row.video, "time": list(row.time), "seconds": seconds, "query": row.fig_desc}
            for row, seconds in moments
            if seconds is not None and row.time[1] > seconds
        ]

    def _with_true_lengths(self, manifest: Manifest) -> Manifest:
        videos = {
            name: replace(video, duration=self._other_length(name) or video.duration)
            for name, video in manifest.videos.items()
        }
        return replace(manifest, videos=videos)

    def _write_failures(self, failures: dict[str, Failure]) -> None:
        now, rows = datetime.now(UTC).isoformat(), []
        for name, failure in failures.items():
            path = self.manifest.videos[name].path or self.manifest.place / name
            place = portable(self._folder, path)
            rows.append({"video_id": name, "source_video_path": place, **failure._asdict(), "extract_utc": now})
        write_lines(self._folder.failed_videos(self.split), rows)

    def _delete(self, row: ClipRow) -> None:
        """Delete the clip of an earlier row, if it was not prepared elsewhere."""
        if "clip" in row and row["source"]:
            clip_file(self._place, row["video_id"], row["meta"]).unlink(missing_ok=True)


def _made(rows: dict[str, ClipRow]) -> dict[str, dict[str, Any]]:
    """Return rows without what was found after the clips were made."""
    return {name: {key: value for key, value in row.items() if key != "refused"} for name, row in rows.items()}


def make_clip_row(text: str, *, root: Path, clips: Path, data: DataConfig, progress: Path | None = None) -> str:
    """Make a video's clip and its row of the journal in a task.

    Args:
        text: JSON, the video's id and file.
        progress: folder for the file that says how far this process is.

    Returns:
        JSON: the row, or a `stop` where the machine is at fault, as with a full disk.
    """
    name, path = json.loads(text)
    row: dict[str, Any] = {"video_id": name, "sampling": _sampling(data), "source": None}
    try:
        with work_on(Path(path)):
            if Path(path).exists() and not Path(path).is_file():
                raise VideoError(Path(path), "is no regular file", "read")  # to read a pipe would take for ever
            row["source"] = FileState.of(Path(path))
            with reporting(progress, name) as report:
                meta = make_clip(clips, name, Path(path), data, report)
            row["clip"] = FileState.of(clip_file(clips, name, meta))
    except VideoError as error:
        return json.dumps(row | {"step": error.step, "error": error.reason, "other_length": data.other_length})
    except OSError as error:
        return json.dumps({"video_id": name, "stop": str(error)})
    places = {key: portable(DatasetFolder(root), Path(str(place))) for key, place in meta.items() if "_path" in key}
    return json.dumps(row | {"meta": meta | places})


def _sampling(data: DataConfig) -> list[Any]:
    """Return the settings that decide the frames; clips of older versions were all sampled by number."""
    numbers = [data.sample_fps, data.max_frames, data.max_pixels]
    return [*numbers, data.sampling] if data.sampling != "legacy" else numbers


def read_journal(path: Path) -> dict[str, ClipRow]:
    """Read what each clip of a split was built from, by video id."""
    rows = steps.read_journal(path, "video_id")
    return {name: _typed(row) for name, row in rows.items() if "clip" in row and "refused" not in row}


def _typed(row: dict[str, Any]) -> Any:
    """Return a row that was read from JSON with its file states as such."""
    return row | {key: FileState(*row[key]) for key in ("source", "clip") if row.get(key)}


def clip_key(row: ClipRow, timestamps: str) -> str:
    """Return one digest of what a model is given of a clip: frames, and the clock they are shown with."""
    meta = row["meta"]
    timing = [meta.get("sampled_timestamps_sec"), meta.get("even_pad_applied"), meta.get("target_sample_fps")]
    return value_sha256([row["clip"].sha256, timestamps, timing])
