"""Says how far the decoding of a split is, while it runs: videos, and the frames of those that are in work.

A process that decodes writes a small file now and then; the driver reads them all.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.data.manifest import Announce

WRITE_EVERY_S = 2.0
SAY_EVERY_S = 10.0


@contextmanager
def reporting(folder: Path | None, video_id: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function for frames decoded and frames in all, which keeps the file of this process; None: no folder."""
    if folder is None:
        yield None
        return
    place, written = folder / f"{os.getpid()}.json", time.monotonic()

    def report(frames: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written >= WRITE_EVERY_S:
            written = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps([video_id, frames, total]))

    try:
        yield report
    finally:
        place.unlink(missing_ok=True)


class Decoding:
    """Announces, while it is open, every tenth of the videos and every `SAY_EVERY_S` seconds how far they are."""

    def __init__(self, split: str, jobs: int, folder: Path, announce: Announce) -> None:
        self._split, self._jobs, self._folder, self._announce = split, jobs, folder, announce
        self._done, self._began, self._over = 0, time.monotonic(), threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Decoding:
        if self._jobs:
            self._speaker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._jobs:
            self._speaker.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def finished(self) -> None:
        """Count a video that is decoded or failed."""
        self._done += 1
        if self._done % max(1, self._jobs // 10) == 0:
            self._announce(self.line())

    def line(self) -> str:
        """Return one line for a person."""
        running = self._running()
        share = (self._done + sum(frames / max(total, frames, 1) for _, frames, total in running)) / self._jobs
        left = (time.monotonic() - self._began) * (1 - share) / share if share else None
        parts = [f"{self._split}: {self._done} of {self._jobs} videos decoded"]
        parts += [f"{name}: {frames} of about {total} frames" for name, frames, total in running]
        if left is not None and self._done < self._jobs:
            parts.append(f"about {max(1, round(left / 60))} min left" if left > 90 else f"about {left:.0f} s left")
        return "; ".join(parts)

    def _running(self) -> list[tuple[str, int, int]]:
        states = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                states.append(tuple(json.loads(path.read_text())))
            except (OSError, ValueError):  # it is being written, or done
                continue
        return states

    def _speak(self) -> None:
        while not self._over.wait(SAY_EVERY_S):
            self._announce(self.line())
