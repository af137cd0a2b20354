"""The one video processor: what a clip becomes for the learner and for the engine.

Pixels, grid and time marks are computed from the checkpoint's own processor settings and carried under the clip's
content hash, so that the two sides can be compared by hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsr1 import compat
from vsr1.formats.plain import encode_plain
from vsr1.model.upload import upload
from vsr1.storage import fetched_folder
from vsr1.video.clips import Clip

compat.prepare()

from transformers import AutoTokenizer, Qwen3VLVideoProcessor  # noqa: E402
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize  # noqa: E402

# Stated because transformers 5.22 changes the default, and with it the number of video tokens.
PROCESSOR_KWARGS: dict[str, Any] = {"do_sample_frames": False, "cap_pixels_per_frame": False}


@dataclass
class ProcessedClip:
    """A clip as the vision tower takes it.

    `pixels` float32 [t*h*w, patch values]; `grid` (t, h, w) in patches; `marks` the seconds printed before frame pairs.
    """

    content_hash: str
    pixels: torch.Tensor
    grid: tuple[int, int, int]
    marks: tuple[float, ...]


class ClipProcessor:
    """Turns clips into pixels and prompts into token ids, from a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(fetched_folder(folder))
        self._video = Qwen3VLVideoProcessor.from_pretrained(folder)
        self._marks: dict[str, list[int]] = {}
        self.merge = int(self._video.merge_size)
        self.video_token = self._token("<|video_pad|>")
        self._vision_start = self._token("<|vision_start|>")
        self._vision_end = self._token("<|vision_end|>")

    def process(self, clip: Clip, device: torch.device | None = None) -> ProcessedClip:
        """Rescaled, normalised and cut into patches on `device`; None: on the CPU."""
        frames = upload(clip.frames, device or torch.device("cpu"))  # as bytes, a quarter of what comes out
        batch = self._video(videos=[frames.permute(0, 3, 1, 2)], **PROCESSOR_KWARGS)
        t, h, w = (int(n) for n in batch["video_grid_thw"][0])
        return ProcessedClip(clip.content_hash, batch["pixel_values_videos"], (t, h, w), pair_marks(clip.timestamps))

    def grid(self, clip: Clip) -> tuple[int, int, int]:
        """The grid that `process` gives, without the pixels."""
        count, height, width, _ = clip.frames.shape
        height, width = smart_resize(
            count,
            height,
            width,
            temporal_factor=self._video.temporal_patch_size,
            factor=self._video.patch_size * self.merge,
            min_pixels=self._video.size["shortest_edge"],
            max_pixels=self._video.size["longest_edge"],
        )
        patch = self._video.patch_size
        return count // self._video.temporal_patch_size, height // patch, width // patch

    def prompt_ids(self, prompt: str, clip: Clip) -> list[int]:
        """As `expand`, for a clip whose pixels are not needed."""
        return self.expand(prompt, self.grid(clip), pair_marks(clip.timestamps))

    def expand(self, prompt: str, grid: tuple[int, int, int], marks: tuple[float, ...]) -> list[int]:
        """Token ids of a prompt, its one video placeholder replaced by time marks and video tokens.

        Time marks are tokenised one by one, as the engine does (method.md §2.2).

        Raises:
            ValueError: not exactly one placeholder.
        """
        return self.insert(self.encode(prompt), self.clip_tokens(grid, marks))

    def encode(self, markup: str) -> list[int]:
        """Return the token ids of chat markup with users' texts in it, see `vsr1.formats.plain`."""
        return encode_plain(partial(self.tokenizer.encode, add_special_tokens=False), markup)

    def clip_tokens(self, grid: tuple[int, int, int], marks: tuple[float, ...]) -> list[int]:
        """What a clip's placeholder stands for: each frame pair's time mark and video tokens."""
        per_pair = grid[1] * grid[2] // self.merge**2
        video: list[int] = []
        for mark in marks:
            video += [*self._mark_ids(mark), self._vision_start, *[self.video_token] * per_pair, self._vision_end]
        return video

    def insert(self, prompt_ids: list[int], clip_tokens: list[int]) -> list[int]:
        """Put a clip's tokens in place of the one video placeholder."""
        if prompt_ids.count(self.video_token) != 1:
            raise ValueError(
                f"a prompt needs exactly one video placeholder, found {prompt_ids.count(self.video_token)}"
            )
        at = prompt_ids.index(self.video_token)
        return prompt_ids[:at] + clip_tokens + prompt_ids[at + 1 :]

    def _mark_ids(self, mark: float) -> list[int]:
        text = f"<{mark:.1f} seconds>"
        if text not in self._marks:
            self._marks[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._marks[text]

    def _token(self, text: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(text)
        if not isinstance(found, int) or found == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer of {self.tokenizer.name_or_path} has no token {text}")
        return found


def pair_marks(timestamps: np.ndarray) -> tuple[float, ...]:
    """Mean time of each frame pair in seconds, in the engine's own arithmetic; timestamps float64 [T] with T even."""
    if len(timestamps) % 2:
        raise ValueError(f"a clip needs an even number of frames, got {len(timestamps)}")
    seconds = [at / 1000.0 for at in _milliseconds(timestamps)]
    return tuple((first + second) / 2 for first, second in zip(seconds[::2], seconds[1::2], strict=True))


def engine_metadata(timestamps: np.ndarray) -> dict[str, Any]:
    """Video metadata that makes the engine print the same time marks: milliseconds as frame indices at 1000 fps."""
    return {
        "fps": 1000.0,
        "duration": float(timestamps[-1]),
        "total_num_frames": len(timestamps),
        "frames_indices": _milliseconds(timestamps),
        "video_backend": "vsr1",
        "do_sample_frames": False,
    }


def _milliseconds(timestamps: np.ndarray) -> list[int]:
    return [round(float(t) * 1000) for t in timestamps]
