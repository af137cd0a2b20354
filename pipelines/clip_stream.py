"""Streams the clips that rows name, as Ray Data tensors. Few imports: every reader is a process of its own."""

from __future__ import annotations

from typing import Any

import ray.data

from vsr1.formats.clips import Clip, ClipFolder

READERS = 2  # processes of a stream


def with_clips(rows: list[dict[str, Any]], clips: ClipFolder, block: int) -> ray.data.Dataset:
    """Rows with the clip that the key `video_id` of each names, `block` rows read at one time; see `clip_of`."""
    blocks = max(1, len(rows) // block)
    return ray.data.from_items(rows, override_num_blocks=blocks).map(
        _WithClip,
        fn_constructor_args=(clips,),
        num_cpus=0.1,
        compute=ray.data.ActorPoolStrategy(size=min(READERS, blocks)),
    )


def clip_of(row: dict[str, Any]) -> Clip:
    """The clip of a row of `with_clips`."""
    return Clip(row["video_id"], row["frames"], row["timestamps"], row["content_hash"])


class _WithClip:
    """Adds a clip as tensors: Ray would pickle a `Clip`, one row after another and slowly."""

    def __init__(self, clips: ClipFolder) -> None:
        self._clips = clips

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        clip = self._clips.read(row["video_id"])
        tensors = {"frames": clip.frames, "timestamps": clip.timestamps}
        return {**row, **tensors, "content_hash": clip.content_hash}
