"""Streams the clips that rows name, as Ray Data tensors. Few imports: every reader is a process of its own."""

from __future__ import annotations

from typing import Any

import ray.data

from pipelines.machine.resources import READER_CPUS, READERS
from vsr1.video.clips import Clip, ClipFolder


def with_clips(rows: list[dict[str, Any]], clips: ClipFolder, block: int) -> ray.data.DataIterator:
    """Return a stream of rows in their order with the clip that `video_id` of each names, `block` rows read at a time.

    See `clip_of`. The stream is scheduled in an actor of its own: in the process that trains, Ray Data's scheduler
    would hold the interpreter's lock most of the time.
    """
    blocks = max(1, len(rows) // block)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map(
        _WithClip,
        fn_constructor_args=(clips,),
        num_cpus=READER_CPUS,
        compute=ray.data.ActorPoolStrategy(size=min(READERS, blocks)),
    )
    dataset.context.execution_options.preserve_order = True
    [stream] = dataset.streaming_split(1)
    return stream


def clip_of(row: dict[str, Any]) -> Clip:
    """Return the clip of a row of `with_clips`."""
    return Clip(row["video_id"], row["frames"], row["timestamps"], row["content_hash"])


class _WithClip:
    """Adds a clip as tensors: Ray would pickle a `Clip`, one row after another and slowly."""

    def __init__(self, clips: ClipFolder) -> None:
        self._clips = clips

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        clip = self._clips.read(row["video_id"])
        tensors = {"frames": clip.frames, "timestamps": clip.timestamps}
        return {**row, **tensors, "content_hash": clip.content_hash}
