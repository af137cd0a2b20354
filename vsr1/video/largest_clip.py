"""The largest clip that a checkpoint's video processor lets through: an engine that starts tries one of that size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vsr1.config import ConfigError
from vsr1.settings.data import DataConfig
from vsr1.storage import fetched

FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")  # newest form first
MOST_PIXELS = 2**32 // (3 * 4)  # of all frames: in float32 they fill the 4 GiB that vLLM keeps processed clips in


def check_largest_clip(folder: Path, data: DataConfig) -> None:
    """See that an engine can hold the largest clip of a checkpoint's processor; no file that says it is no fault.

    Raises:
        ConfigError: the processor lets through more pixels than an engine takes, which would end its start.
    """
    for file in (fetched(folder / name) for name in FILES):
        pixels = _longest_edge(file) if file.is_file() else None
        if pixels is None:
            continue
        if pixels > MOST_PIXELS:
            raise ConfigError(
                f"{file}: size.longest_edge={pixels} lets a clip have so many pixels in all its frames, and an engine "
                f"tries one of that size when it starts: it takes {MOST_PIXELS} at most. Lower it; clips of this "
                f"dataset have data.max_frames x data.max_pixels = {data.max_frames * data.max_pixels}"
            )
        return


def _longest_edge(file: Path) -> int | None:
    """Return the pixels of a clip that a file allows, None where it says nothing of videos."""
    settings: Any = json.loads(file.read_text(encoding="utf-8"))
    settings = settings.get("video_processor", {}) if file.name == FILES[0] else settings
    pixels = (settings.get("size") or {}).get("longest_edge", settings.get("max_pixels"))
    return int(pixels) if pixels is not None else None
